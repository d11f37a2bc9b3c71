"""Policy gradients: objectives whose advantage is the teacher's log-ratio, without gradient.

Shapes: N positions, S ids of the support. p is the student in training, p_0 the checkpoint that wrote the rollouts, q
the teacher, y_t the sampled token, sg a stop-gradient. Values are no divergences: read `opd_reverse_kl` and
`teacher_kl` of the steps table instead.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from pipeline.objectives import importance
from pipeline.objectives.advantage import discounted, kl_baseline
from pipeline.objectives.batch import StudentLogits, TokenBatch
from pipeline.objectives.dense import DENSE_AGE_CAP
from pipeline.objectives.importance import Surrogate
from pipeline.objectives.outside import FLOOR
from pipeline.objectives.reduction import Reduced, Reduction, TokenMean
from pipeline.objectives.support import LEAST_LOG_Q, StudentTopK


@dataclass(frozen=True)
class PolicyGradient(Reduced):
    """loss_n = -sg(A_n) log p(y_n), with discounting, a ratio, a baseline and a clip where they are set.

    The batch holds whole rollouts, less their positions of weight 0; A sums over what is there.
    """

    name: str
    gamma: float = 0.0
    advantage: Literal["rollout", "current"] = "rollout"
    """p in log q - log p: p_0, fixed when the rollouts were scored, or p, recomputed at every step."""
    surrogate: Surrogate = importance.none
    baseline: Literal["none", "kl"] = "none"
    clip: float | None = None
    """Of the advantage less its baseline, in nats."""
    age_cap: int = 4
    """On a small language model sampled-token objectives degrade from 4 to 16 steps per rollout batch."""
    reduction: Reduction = TokenMean()
    needs_log_normaliser: ClassVar[bool] = True
    whole_vocabulary: ClassVar[bool] = False

    def support(self, batch: TokenBatch) -> Tensor:
        return batch.token_ids_N[:, None]

    def loss(self, batch: TokenBatch, student: StudentLogits) -> Tensor:
        log_p_N = student.logits_NS[:, 0] - student.lse_N
        return self.surrogate(self.advantages(batch, log_p_N.detach()), log_p_N, batch.sampling_log_prob_N)

    def advantages(self, batch: TokenBatch, log_p_N: Tensor) -> Tensor:
        """A_N, from log p(y_n) of the student in training, without gradient."""
        log_before_N = batch.student_log_prob_N if self.advantage == "rollout" else log_p_N
        reward_N = batch.teacher_log_prob_N.clamp_min(LEAST_LOG_Q) - log_before_N
        advantage_N = discounted(reward_N, self.gamma, batch.rollout_N, batch.position_N)
        if self.baseline == "kl":
            advantage_N = advantage_N - kl_baseline(batch)
        return advantage_N if self.clip is None else advantage_N.clamp(-self.clip, self.clip)


@dataclass(frozen=True)
class ListPolicyGradient(Reduced):
    """A policy gradient over every id of p_0's top-k instead of the sampled one (as Rethinking OPD's code has it).

        loss_n = -sum_{u in S} min(rho_u A_u, clip(rho_u, 1 - clip, 1 + clip) A_u)
        rho_u = p(u) / p_0(u),   A_u = p_0(u) / P_0(S) * (log q(u) - log p_0(u))

    The weight stands in for having sampled u: without it the expectation would be another's. At p = p_0 the gradient is
    1 / P_0(S) times that of `sum_{u in S} p_u (sg(log p_u) - log q_u)`. p_0's list lies on a grid: an unmoved rho_u
    reads within 1.6 % of 1.
    """

    name: str
    select: StudentTopK
    clip: float
    age_cap: int = DENSE_AGE_CAP
    reduction: Reduction = TokenMean()
    needs_log_normaliser: ClassVar[bool] = True
    whole_vocabulary: ClassVar[bool] = False

    def support(self, batch: TokenBatch) -> Tensor:
        return self.select(batch).ids_NS

    def loss(self, batch: TokenBatch, student: StudentLogits) -> Tensor:
        support = self.select(batch)
        log_p_NS = (student.logits_NS - student.lse_N[:, None]).clamp_min(FLOOR)
        log_before_NS = batch.student_topk_log_probs_Nk[:, :support.ids_NS.shape[1]].clamp_min(FLOOR)
        advantage_NS = log_before_NS.softmax(1) * (support.teacher_log_probs_NS - log_before_NS)
        return importance.ppo(self.clip, self.clip)(advantage_NS, log_p_NS, log_before_NS).sum(1)
