"""Runs verl's forward KL on the teacher's top-K, before and after its clamp at 0, and writes verl.json.

    python -m tests.objectives.peers.generate_verl CHECKOUT      (github.com/verl-project/verl)

At position 0 the student is the teacher with 1 nat added to the logits on the list, which makes the raw sum over the
list negative. verl's padding helper is replaced by the identity, since the inputs have no padding.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from tests.objectives.peers.fixture import POSITIONS, TEACHER_K, case, commit, inputs, top_k, write


def forward_kl(student_NV: torch.Tensor, teacher_NV: torch.Tensor) -> dict[str, torch.Tensor]:
    from verl.trainer.distillation.fsdp.losses import compute_forward_kl_topk

    ids_NK = top_k(teacher_NV, TEACHER_K)
    log_probs_NK = teacher_NV.log_softmax(-1).gather(1, ids_NK)
    config = SimpleNamespace(distillation_loss=SimpleNamespace(log_prob_min_clamp=None, use_chunked_topk=False))
    nested = [torch.nested.as_nested_tensor([rows], layout=torch.jagged) for rows in (log_probs_NK, ids_NK)]
    return compute_forward_kl_topk(student_NV[None], *nested, config, "thd")


def clamped(output: dict[str, torch.Tensor]) -> torch.Tensor:
    from verl.trainer.distillation import losses

    losses.no_padding_2_padding = lambda tensor, data: tensor
    config = SimpleNamespace(distillation_loss=SimpleNamespace(topk=TEACHER_K))
    data = {"response_mask": torch.ones(1, POSITIONS)}
    return losses.compute_forward_kl_topk(None, config, output, data)[0]


def main(checkout: Path) -> None:
    sys.path.insert(0, str(checkout))
    tensors = inputs(seed=4, drift=0.5)
    tensors["student"][0] = tensors["teacher"][0]
    tensors["student"][0, top_k(tensors["teacher"], TEACHER_K)[0]] += 1.0
    student_NV, teacher_NV = tensors["student"].float().requires_grad_(), tensors["teacher"].float()
    output = forward_kl(student_NV, teacher_NV)
    cases = [case("truncated", output["distillation_losses"][0], student_NV, k=TEACHER_K)]
    cases.append(case("clamped", clamped(forward_kl(student_NV, teacher_NV))[0], student_NV, k=TEACHER_K))
    write("verl.json", peer="verl-project/verl", version=commit(checkout), dtype="float32", tensors=tensors,
          cases=cases, function="verl.trainer.distillation.fsdp.losses.compute_forward_kl_topk; "
                   "verl.trainer.distillation.losses.compute_forward_kl_topk",
          command="python -m tests.objectives.peers.generate_verl CHECKOUT")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
