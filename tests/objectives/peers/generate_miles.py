"""Runs miles' top-k reverse KL as an advantage and writes miles.json.

    python -m tests.objectives.peers.generate_miles CHECKOUT      (github.com/radixark/miles)

The list is the student's own top-k ("only-student", weights of the student). Every token y that could have been sampled
gets the advantage miles gives it, and the loss -A log p(y); written is its expectation over y ~ p with its gradient.
"""

import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import torch

from tests.objectives.peers.fixture import STUDENT_K, case, commit, inputs, top_k, write


def reverse_kl_N(behaviour_NV: torch.Tensor, teacher_NV: torch.Tensor) -> torch.Tensor:
    from miles.rollout import on_policy_distillation as opd

    student_NV, teacher_NV = behaviour_NV.log_softmax(-1), teacher_NV.log_softmax(-1)
    ids_Nk = top_k(behaviour_NV, STUDENT_K)

    def entries(log_probs_NV):
        return [[[log_probs_NV[n, u].item(), int(u), None] for u in ids_k] for n, ids_k in enumerate(ids_Nk)]

    args = Namespace(opd_log_prob_top_k=STUDENT_K, opd_top_k_strategy="only-student",
                     opd_reward_weight_mode="student_p")
    sample = SimpleNamespace(response_length=len(ids_Nk), metadata={"opd_student_top_logprobs": entries(student_NV)})
    meta = {"input_token_ids_logprobs": [None, *entries(teacher_NV)]}
    return opd._compute_topk_reverse_kl(args, sample, {"teacher": {"meta_info": meta}})


def expected_loss_N(student_NV: torch.Tensor, value_N: torch.Tensor) -> torch.Tensor:
    """E over y ~ p of -A(y) log p(y), with A and the distribution of y held constant."""
    from miles.backends.training_utils.loss_hub.opd import apply_opd_kl_to_advantages

    log_probs_NV = student_NV.log_softmax(-1)
    total_N = torch.zeros(len(student_NV))
    for token in range(student_NV.shape[1]):
        advantages = [torch.zeros(len(student_NV))]
        apply_opd_kl_to_advantages(Namespace(opd_kl_coef=1.0), {"opd_reverse_kl": [value_N]}, advantages,
                                   [log_probs_NV[:, token].detach()])
        total_N = total_N - log_probs_NV[:, token].exp().detach() * advantages[0] * log_probs_NV[:, token]
    return total_N


def main(checkout: Path) -> None:
    sys.path.insert(0, str(checkout))
    tensors = inputs(seed=5)
    student_NV = tensors["student"].float().requires_grad_()
    value_N = reverse_kl_N(tensors["behaviour"].float(), tensors["teacher"].float())
    cases = [case("reverse KL", value_N, student_NV, k=STUDENT_K),
             case("expected policy gradient", expected_loss_N(student_NV, value_N), student_NV, k=STUDENT_K)]
    write("miles.json", peer="radixark/miles", version=commit(checkout), dtype="float32", tensors=tensors, cases=cases,
          function="miles.rollout.on_policy_distillation._compute_topk_reverse_kl; "
                   "miles.backends.training_utils.loss_hub.opd.apply_opd_kl_to_advantages",
          command="python -m tests.objectives.peers.generate_miles CHECKOUT")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
