"""How far the student has moved from the one that wrote the data, on a fixed 1/32 of the positions.

p_0 wrote and scored the rollouts; p_now is the student before the step's update; q is the teacher; means run over
the probed positions of the step's rollouts, masked ones included.

    drift            mean KL(p_0 || p_now), coarsened to the cached student top-k and one bucket for the rest
    ess              (sum w)^2 / (n sum w^2), w = p_now(y_t) / p_0(y_t), log w clamped to +-20
    student_mass     mean of p_now's mass on the teacher's top-K
    opd_reverse_kl   mean of log p_now(y_t) - log q(y_t)
    teacher_kl       mean KL(p_now || q), coarsened to the teacher's top-K and one bucket for the rest; null where a
                     vLLM teacher did not tell a tail
    student_entropy  mean entropy of p_now over the whole vocabulary
    topk_left        share of p_now's top-k that p_0's cached top-k lacks: a support that is made of the cache does not
                     follow the student there

p_0 is stored on a grid, so its tail is known only up to rounding: of the tails that rounding allows, the one nearest
to p_now's is taken, and the KL is the one of unnormalised masses, sum p_0 log(p_0 / p_now) - p_0 + p_now, whose
every term is at least 0. An unmoved student then reads about 1e-5, not the .01 of `1 - sum of rounded masses`.

Shapes: N probed positions, D model width, K teacher and k student entries.
"""

import numpy as np
import torch

from pipeline.objectives import TokenBatch
from pipeline.objectives.support import LEAST_LOG_Q, exact_mass
from pipeline.score.by_vllm.unknown import STAND_IN
from pipeline.streams import hash64
from pipeline.train.current import Current
from pipeline.train.parallel import OneProcess

MEANS = ("drift", "student_mass", "opd_reverse_kl", "teacher_kl", "student_entropy", "topk_left")
"""Columns that are means over positions; `ess` is not."""
ONE_IN_LOG2 = 5
"""One position of 2^5."""
LOG_RATIO_LIMIT = 20.0


def probed(rollout_id: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Whether each position is one of the probed 1/32: a function of its ids alone, the same in every run."""
    return hash64(rollout_id, position) >> np.uint64(64 - ONE_IN_LOG2) == 0


class Probe:
    """Collects the probed positions of one step; `metrics` sums them up."""

    def __init__(self, grid: int):
        self._half_step = 0.5 / grid
        self._values: list[torch.Tensor] = []

    @torch.no_grad()
    def add(self, batch: TokenBatch, now: Current) -> None:
        """Take in what p_now says at the positions of `batch`."""
        log_ratio_N = (now.log_prob_N - batch.student_log_prob_N).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        self._values.append(torch.stack([values_N.double() for values_N in (
            drift(batch, now.at_student_Nk, self._half_step), now.at_teacher_NK.exp().sum(-1),
            now.log_prob_N - batch.teacher_log_prob_N, teacher_kl(batch, now.at_teacher_NK), now.entropy_N,
            left(batch, now.topk_ids_Nk), log_ratio_N)]))

    def metrics(self, ranks: OneProcess = OneProcess()) -> dict:
        """Columns of the steps table over the positions of all ranks; null where no position was probed."""
        none = torch.empty(len(MEANS) + 1, 0, dtype=torch.float64)
        values = ranks.together(torch.cat(self._values, dim=1).cpu() if self._values else none)
        count = values.shape[1]
        if count == 0:
            return {**dict.fromkeys((*MEANS, "ess")), "probe_tokens": 0}
        ratio_N = values[-1].exp()
        ess = ratio_N.sum() ** 2 / (count * (ratio_N ** 2).sum())
        means = dict(zip(MEANS, values[:-1].mean(1).tolist()))
        if np.isnan(means["teacher_kl"]):
            means["teacher_kl"] = None
        return {**means, "ess": ess.item(), "probe_tokens": count}


def teacher_kl(batch: TokenBatch, now_NK: torch.Tensor) -> torch.Tensor:
    """KL(p_now || q) per position over the teacher's stored top-K and its tail; `now_NK` are p_now's log-probs."""
    log_q_NK = exact_mass(batch.teacher_topk_log_probs_NK.double(), batch.teacher_log_tail_N.double())
    log_p_NK = now_NK.double()
    outside_N = (1 - log_p_NK.exp().sum(-1)).clamp_min(_TINY)
    log_q_outside_N = batch.teacher_log_tail_N.double().clamp_min(LEAST_LOG_Q)
    kl_N = (log_p_NK.exp() * (log_p_NK - log_q_NK)).sum(-1) + outside_N * (outside_N.log() - log_q_outside_N)
    return kl_N.masked_fill(batch.teacher_log_tail_N == STAND_IN, torch.nan)  # a tail that the teacher did not tell


def left(batch: TokenBatch, topk_ids_Nk: torch.Tensor) -> torch.Tensor:
    """Share of `topk_ids_Nk` that is not among p_0's stored top-k."""
    found_Nkk = topk_ids_Nk[:, :, None] == batch.student_topk_ids_Nk[:, None, :]
    return 1 - found_Nkk.any(-1).double().mean(-1)


def drift(batch: TokenBatch, now_Nk: torch.Tensor, half_step: float) -> torch.Tensor:
    """KL(p_0 || p_now) per position over the student's stored top-k and its tail; `now_Nk` are p_now's log-probs."""
    sampled_Nk = batch.student_topk_ids_Nk == batch.token_ids_N[:, None]
    before_Nk = torch.where(sampled_Nk, batch.student_log_prob_N[:, None], batch.student_topk_log_probs_Nk).double()
    now_Nk = now_Nk.double()
    mass_Nk, mass_now_Nk = before_Nk.exp(), now_Nk.exp()
    inside_N = _divergence(mass_Nk, before_Nk, mass_now_Nk, now_Nk).sum(-1)
    rounding_Nk = torch.where(sampled_Nk, 0.0, half_step)
    lowest_N = 1 - (before_Nk + rounding_Nk).exp().sum(-1)
    highest_N = 1 - (before_Nk - rounding_Nk).exp().sum(-1)
    now_N = (1 - mass_now_Nk.sum(-1)).clamp_min(_TINY)
    tail_N = torch.minimum(torch.maximum(now_N, lowest_N), highest_N).clamp_min(_TINY)
    return inside_N + _divergence(tail_N, tail_N.log(), now_N, now_N.log())


_TINY = 1e-12
"""Smallest tail: below float32's error in a sum of masses, and its logarithm is finite."""


def _divergence(p, log_p, q, log_q):
    return p * (log_p - log_q) - p + q
