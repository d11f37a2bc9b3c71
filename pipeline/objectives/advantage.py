"""Advantages of sampled tokens: how much better the teacher likes what was sampled, now and later in the rollout.

    A_t = sum_{t' >= t} gamma^(t' - t) r_t' - b_t,   r_t = log q(y_t) - log p(y_t)

over the kept positions of y_t's own rollout; t counts response tokens, so masked ones and an environment's still take
time. gamma 0 is the token level, whose expectation over y_t ~ p is the full reverse KL's gradient at this state; 1 is
the causal sequence level, the gradient of the sequence's reverse KL. Its variance grows with gamma (Revisiting OPD,
appendix E).

Shapes: N positions, k the student's stored entries. p is a student, p_0 the one that wrote the rollouts, q the teacher.
"""

import torch
from torch import Tensor

from pipeline.objectives.batch import TokenBatch
from pipeline.objectives.outside import FLOOR
from pipeline.objectives.support import LARGEST_LOG_TAIL, StudentTopK


def discounted(reward_N: Tensor, gamma: float, rollout_N: Tensor, position_N: Tensor) -> Tensor:
    """sum over n' >= n of the same rollout of gamma^(position_n' - position_n) reward_n'.

    Positions of a rollout are in order. Sums over 1, 2, 4, ... positions are doubled until they hold all: a scan in
    log2(N) passes, and no difference of large sums.
    """
    sum_N, step = reward_N, 1
    while gamma > 0 and step < len(sum_N):
        same_N = rollout_N[step:] == rollout_N[:-step]
        discount_N = gamma ** (position_N[step:] - position_N[:-step]).clamp_min(0).to(sum_N.dtype)
        later_N = torch.where(same_N, discount_N * sum_N[step:], 0.0)
        sum_N = torch.cat([sum_N[:-step] + later_N, sum_N[-step:]])
        step *= 2
    return sum_N


def kl_baseline(batch: TokenBatch) -> Tensor:
    """b_N = -KL(p_0 || q) on p_0's stored top-k and one bucket for the rest (vOPD, arXiv 2605.07865; its top-k form).

    Unbiased: b depends on the prefix alone, and E_{y ~ p}[b d log p(y)] = b d sum_y p(y) = 0. That asks for y ~ p, at
    temperature 1 and without top-p, or for an importance ratio. p_0 stands for p, whose own KL would be another
    function of the prefix, as unbiased and a few steps newer. p_0's mass outside its list is not stored but 1 - mass:
    rounding of the list then changes how much variance goes, never the expectation.
    """
    support = StudentTopK()(batch)
    log_p_Nk = batch.student_topk_log_probs_Nk
    log_mass_N = log_p_Nk.logsumexp(1)
    log_p_Nk = log_p_Nk - log_mass_N.clamp_min(0)[:, None]  # rounding may claim more than all the mass
    log_tail_N = torch.log(-torch.expm1(log_mass_N.clamp_max(LARGEST_LOG_TAIL)))
    log_tail_N = log_tail_N.masked_fill(log_mass_N > LARGEST_LOG_TAIL, FLOOR)
    log_p_NB = torch.cat([log_p_Nk, log_tail_N[:, None]], 1).clamp_min(FLOOR)
    log_q_NB = torch.cat([support.teacher_log_probs_NS, support.teacher_log_outside_N[:, None]], 1)
    return -(log_p_NB.exp() * (log_p_NB - log_q_NB)).sum(1)
