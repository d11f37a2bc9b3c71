"""Sampled-token objectives: policy gradients whose advantage is the teacher's log-ratio on the sampled token.

Shapes: N positions. p is the current student, p_0 the checkpoint that wrote the rollouts, q the teacher, y_t the
sampled token, sg a stop-gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pipeline.objectives.batch import StudentLogits, TokenBatch
from pipeline.objectives.reduction import Reduced, Reduction, TokenMean

Advantage = Callable[[TokenBatch, Tensor], Tensor]
"""(batch, log_p_N of the current student, without gradient) -> A_N."""


def from_rollout_policy(batch: TokenBatch, log_p_N: Tensor) -> Tensor:
    """A_t = log q(y_t) - log p_0(y_t): fixed when the rollouts were scored."""
    return batch.teacher_log_prob_N - batch.student_log_prob_N


@dataclass(frozen=True)
class PolicyGradient(Reduced):
    """loss_n = -sg(A_n) log p(y_n). The value is no divergence: read `opd_reverse_kl` of the steps table instead."""

    name: str
    advantage: Advantage
    reduction: Reduction = TokenMean()
    needs_log_normaliser: bool = True

    def support(self, batch: TokenBatch) -> Tensor:
        return batch.token_ids_N[:, None]

    def loss(self, batch: TokenBatch, student: StudentLogits) -> Tensor:
        log_p_N = student.logits_NS[:, 0] - student.lse_N
        return -self.advantage(batch, log_p_N.detach()) * log_p_N
