"""Supports: the ids on which student and teacher are compared, and what the cache knows of the teacher there.

Shapes: N positions, K stored teacher entries, S entries of the support. Columns that are not members of a row's
support (a union or an intersection has rows of different sizes) repeat one of its members and are False in
`member_NS`; their log-probs are never read, so no -inf meets a 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.objectives.batch import TokenBatch
from storage.errors import UserError


@dataclass(frozen=True)
class Support:
    """Ids S_n per position, with the teacher's log-probs on and outside them."""

    ids_NS: Tensor
    teacher_log_probs_NS: Tensor
    teacher_log_outside_N: Tensor
    """log(1 - Q_S), from the stored tail and not from 1 - mass."""
    member_NS: Tensor
    """bool. False for repeated columns."""


LARGEST_LOG_TAIL = -1e-9
"""A tail of all the mass, up to rounding: keeps the logarithm of the rest finite."""
LEAST_LOG_Q = -100.0
"""Stands in for a teacher's log-prob of -inf: mass there costs the student 100 nats, where the KL would be infinite."""

Selector = Callable[[TokenBatch], Support]


@dataclass(frozen=True)
class TeacherTopK:
    """S = the teacher's k most likely ids; k = None: all that are stored.

    Ids cut off by a k below the stored K move into the tail: log(1 - Q_k) = log(exp(tail_K) + sum_{k<j<=K} q_j).
    """

    k: int | None = None

    def __call__(self, batch: TokenBatch) -> Support:
        stored = batch.teacher_topk_ids_NK.shape[1]
        k = stored if self.k is None else self.k
        if k > stored:
            raise UserError(f"objective.k = {k}, but these scores hold the teacher's top {stored}: lower objective.k, "
                            f"or score again with score.teacher_top_k = {k}")
        log_q_NK = exact_mass(batch.teacher_topk_log_probs_NK, batch.teacher_log_tail_N)
        log_outside_N = torch.logaddexp(batch.teacher_log_tail_N, log_q_NK[:, k:].logsumexp(1))
        ids_NS = batch.teacher_topk_ids_NK[:, :k]
        return Support(ids_NS, log_q_NK[:, :k].clamp_min(LEAST_LOG_Q), log_outside_N.clamp_min(LEAST_LOG_Q),
                       torch.ones_like(ids_NS, dtype=torch.bool))


def exact_mass(log_q_NK: Tensor, log_tail_N: Tensor) -> Tensor:
    """Shift each row so that its mass and the stored tail's add up to 1.

    Stored lists lie on a grid (up to 1/32 nat off, with a common part per row); the tail is an exact scalar. Without
    the shift the coarsened teacher is not a distribution and a KL against it can be negative. Renormalisation cancels
    the shift, so LSM does not notice.
    """
    log_mass_N = torch.log(-torch.expm1(log_tail_N.clamp_max(LARGEST_LOG_TAIL)))
    return log_q_NK + (log_mass_N - log_q_NK.logsumexp(1))[:, None]
