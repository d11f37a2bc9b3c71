"""Runs TRL's generalised JSD, over all ids and on the teacher's top-K with a tail bucket, and writes trl.json.

    python -m tests.objectives.peers.generate_trl       (needs: pip install trl)
"""

from importlib.metadata import version

import torch
from trl.experimental.gkd import GKDTrainer
from trl.experimental.server_distillation import server_distillation_trainer as server

from tests.objectives.peers.fixture import TEACHER_K, VOCAB, case, inputs, top_k, write

BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)


def on_the_teachers_list(student_NV: torch.Tensor, teacher_NV: torch.Tensor, k: int, beta: float) -> torch.Tensor:
    ids_NK = top_k(teacher_NV, k)
    everywhere = torch.ones_like(ids_NK, dtype=torch.bool)
    student, mask = server._add_tail_bucket(student_NV.log_softmax(-1).gather(1, ids_NK), everywhere)
    teacher, _ = server._add_tail_bucket(teacher_NV.log_softmax(-1).gather(1, ids_NK), everywhere)
    return server._jsd_divergence(student, teacher, beta, mask).sum(-1)


def main() -> None:
    tensors = inputs(seed=1, drift=0.5)
    student_NV, teacher_NV = tensors["student"].requires_grad_(), tensors["teacher"]
    cases = []
    for beta in BETAS:
        full = GKDTrainer.generalized_jsd_loss(student_NV, teacher_NV, beta=beta, reduction="none").sum(-1)
        cases.append(case("full", full, student_NV, beta=beta))
        cases.append(case("tail bucket", on_the_teachers_list(student_NV, teacher_NV, TEACHER_K, beta), student_NV,
                          beta=beta, k=TEACHER_K))
    cases.append(case("tail bucket, K = V", on_the_teachers_list(student_NV, teacher_NV, VOCAB, 0.0), student_NV,
                      beta=0.0, k=VOCAB))
    write("trl.json", peer="trl", version=version("trl"), dtype="float64", tensors=tensors, cases=cases,
          function="experimental.gkd.GKDTrainer.generalized_jsd_loss; experimental.server_distillation: "
                   "_add_tail_bucket and _jsd_divergence",
          command="python -m tests.objectives.peers.generate_trl")


if __name__ == "__main__":
    main()
