"""The named objectives. Each is one composition of the family, with its formula and its limits.

p = student at the position, q = teacher, S = support, P_S and Q_S their masses on it, c = (x, y_<t), N positions,
K entries of the teacher's stored list. REV = Revisiting OPD (arXiv 2603.25562), RETH = Rethinking OPD (2604.13016).
"""

from collections.abc import Callable
from dataclasses import replace

from pipeline.config.model import SampledToken, SampledTokenMasked, TailBucketTopK, TeacherTopKLsm
from pipeline.objectives.dense import Dense
from pipeline.objectives.divergence import reverse_kl
from pipeline.objectives.objective import Objective
from pipeline.objectives.outside import renormalise, tail_bucket
from pipeline.objectives.policy_gradient import PolicyGradient, from_rollout_policy
from pipeline.objectives.reduction import REDUCTIONS
from pipeline.objectives.support import TeacherTopK


def teacher_topk_lsm(config: TeacherTopKLsm) -> Objective:
    """Local support matching on the teacher's top-K (REV, teacher top-K local support matching; K 32).

        L_n = sum_{u in S} p^_u log(p^_u / q^_u),   p^ = p / P_S,  q^ = q / Q_S,  S = teacher's top-K
        dL_n/dz_u = p^_u (log(p^_u / q^_u) - L_n) for u in S, 0 outside: the normaliser cancels, the sum over S is 0.

    logits_NK -> loss_N. The sampled token is not added to S.
    Not for: K = 1 (loss and gradient are 0); a student whose mass on S is below about .85, since nothing here has a
    target for P_S, which drifts as a side effect (watch `student_mass`).
    """
    return Dense("teacher_topk_lsm", TeacherTopK(config.k), reverse_kl, renormalise)


def tail_bucket_topk(config: TailBucketTopK) -> Objective:
    """Reverse KL on the teacher's top-K plus one bucket for the rest (Tail-aware top-k OPD, arXiv 2608.14728).

        L_n = sum_{u in S} p_u log(p_u / q_u) + (1 - P_S) log((1 - P_S) / (1 - Q_S)),   S = teacher's top-K
        full reverse KL = L_n + (1 - P_S) KL(p outside S || q outside S), so 0 <= L_n <= full.

    logits_NK, lse_N, log_outside_N -> loss_N.
    Not for: the speed of the support head. 1 - P_S has a gradient to every logit, a pass over the vocabulary.
    """
    return Dense("tail_bucket_topk", TeacherTopK(config.k), reverse_kl, tail_bucket)


def sampled_token(config: SampledToken) -> Objective:
    """Token-level policy gradient on the sampled token (Thinking Machines, On-Policy Distillation; RETH).

        L_t = -sg(A_t) log p(y_t),   A_t = log q(y_t) - log p_0(y_t),   gamma = 0

    logits_N1, lse_N -> loss_N. For y ~ p = p_0 (temperature 1, no top-p) the expected gradient is that of the full
    KL(p || q) at this state. Differentiating the log-ratio (k1) itself instead would have expected gradient 0, and
    back-propagating through k3 would descend the forward KL.
    Not for: many updates per rollout batch (1 in RETH; degrades from 4 to 16), since A_t is p_0's and no ratio
    corrects for p having moved; top-p below 1 without knowing that the expectation above then is over the nucleus.
    """
    return PolicyGradient("sampled_token", from_rollout_policy)


def sampled_token_masked(config: SampledTokenMasked) -> Objective:
    """`sampled_token` on the positions a special-token mask leaves (REV: 36.4 -> 40.7 average over sampled_token).

        L_t = -w_t sg(A_t) log p(y_t),   w_t = 0 on the first occurrence of a listed or detected token

    The mask is a stage of the round and acts through the weights; the config is refused without one.
    """
    return PolicyGradient("sampled_token_masked", from_rollout_policy)


PRESETS: dict[str, Callable[..., Objective]] = {
    preset.__name__: preset for preset in (teacher_topk_lsm, tail_bucket_topk, sampled_token, sampled_token_masked)
}
"""By `objective.type`."""


def build(config, reduction: str = "token_mean") -> Objective:
    """The objective that a config's `objective` section names, with the reduction that `train.reduction` names."""
    return replace(PRESETS[config.type](config), reduction=REDUCTIONS[reduction])
