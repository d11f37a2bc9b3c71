"""Runs NeMo-RL's distillation loss on the teacher's top-K logits and writes nemo_rl.json.

    python -m tests.objectives.peers.generate_nemo_rl CHECKOUT      (github.com/NVIDIA-NeMo/RL, on no registry)
"""

import sys
from pathlib import Path

import torch

from tests.objectives.peers.fixture import TEACHER_K, case, commit, inputs, top_k, write


def per_position(student_NV: torch.Tensor, teacher_NV: torch.Tensor, kl_type: str, zero_outside: bool) -> torch.Tensor:
    """The loss has no form without a reduction: a batch of one position each; the last of a sequence is dropped."""
    from nemo_rl.algorithms.loss.loss_functions import DistillationLossConfig, DistillationLossFn
    from nemo_rl.distributed.model_utils import get_distillation_topk_logprobs_from_logits

    loss_function = DistillationLossFn(DistillationLossConfig(kl_type=kl_type, zero_outside_topk=zero_outside))
    rows = []
    for student_V, teacher_V in zip(student_NV, teacher_NV):
        ids_11K = top_k(teacher_V[None], TEACHER_K)[None]
        arguments = get_distillation_topk_logprobs_from_logits(
            student_V.expand(1, 2, -1), teacher_V[ids_11K].expand(1, 2, -1), ids_11K.expand(1, 2, -1), zero_outside,
            calculate_entropy=zero_outside)
        rows.append(loss_function(*arguments, {"input_ids": torch.zeros(1, 2)}, None, None)[0])
    return torch.stack(rows)


def main(checkout: Path) -> None:
    sys.path.insert(0, str(checkout))
    tensors = inputs(seed=3, drift=0.5)
    student_NV, teacher_NV = tensors["student"].float().requires_grad_(), tensors["teacher"].float()
    settings = [("forward", False), ("reverse", False), ("mixed", False), ("forward", True), ("reverse", True)]
    cases = [case("zero_outside_topk" if zero else "renormalised",
                  per_position(student_NV, teacher_NV, kind, zero), student_NV, kl_type=kind, k=TEACHER_K)
             for kind, zero in settings]
    write("nemo_rl.json", peer="NVIDIA-NeMo/RL", version=commit(checkout), dtype="float32", tensors=tensors,
          cases=cases, function="nemo_rl.algorithms.loss.loss_functions.DistillationLossFn on "
                   "nemo_rl.distributed.model_utils.get_distillation_topk_logprobs_from_logits",
          command="python -m tests.objectives.peers.generate_nemo_rl CHECKOUT")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
