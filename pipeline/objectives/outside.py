"""What becomes of the mass outside the support: ways to turn logits into buckets that are compared.

Shapes: N positions, S support entries, B buckets (S, or S + 1 with a tail). Columns that are no members, and logits
of -inf, get the finite FLOOR: their probability is exactly 0, their log-ratio finite, and no -inf meets a 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.objectives.batch import StudentLogits
from pipeline.objectives.support import Support

FLOOR = -1e4
"""exp(FLOOR) is 0 in float64 too, and FLOOR times 0 is 0."""

Buckets = tuple[Tensor, Tensor]
"""(log_p_NB, log_q_NB)."""


@dataclass(frozen=True)
class Outside:
    """A rule, and whether it needs the student's normaliser."""

    buckets: Callable[[Support, StudentLogits], Buckets]
    needs_log_normaliser: bool


def _floored(log_NS: Tensor, member_NS: Tensor) -> Tensor:
    return log_NS.masked_fill(~member_NS, FLOOR).clamp_min(FLOOR)


def _renormalise(support: Support, student: StudentLogits) -> Buckets:
    """p^_u = exp(z_u) / sum_{v in S} exp(z_v) and q^_u = q_u / Q_S. The student's normaliser cancels."""
    log_p_NS = _floored(student.logits_NS, support.member_NS).log_softmax(1)
    log_q_NS = _floored(support.teacher_log_probs_NS, support.member_NS).log_softmax(1)
    return log_p_NS, log_q_NS


def _tail_bucket(support: Support, student: StudentLogits) -> Buckets:
    """p and q on S, and one bucket for everything else: (1 - P_S, 1 - Q_S). A true coarsening of both.

    An empty S leaves one bucket that holds everything on both sides: no bucket at all, so that no loss comes of it.
    """
    member_NB = torch.cat([support.member_NS, support.member_NS.any(1, keepdim=True)], 1)
    z_NB = torch.cat([student.logits_NS, student.log_outside_N[:, None]], 1)
    log_q_NB = torch.cat([support.teacher_log_probs_NS, support.teacher_log_outside_N[:, None]], 1)
    return _floored(z_NB - student.lse_N[:, None], member_NB), _floored(log_q_NB, member_NB)


def _truncate(support: Support, student: StudentLogits) -> Buckets:
    """p and q on S as they are, adding up to P_S and Q_S: no distributions. A negative control.

    A divergence of them is no divergence: it can be negative, nothing is clamped (a clamp at 0 would silently end the
    gradients of such rows), and its minimum is not at p = q. For the reverse KL it is p = q / e on S, and on the way
    the mass on S leaks away.
    """
    log_p_NS = _floored(student.logits_NS - student.lse_N[:, None], support.member_NS)
    return log_p_NS, _floored(support.teacher_log_probs_NS, support.member_NS)


renormalise = Outside(_renormalise, needs_log_normaliser=False)
tail_bucket = Outside(_tail_bucket, needs_log_normaliser=True)
truncate = Outside(_truncate, needs_log_normaliser=True)

RULES = {"renormalise": renormalise, "tail_bucket": tail_bucket, "truncate": truncate}
"""By the name of `objective.outside`."""
