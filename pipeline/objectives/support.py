"""Supports: the ids on which student and teacher are compared, and what the cache knows of the teacher there.

    T = the teacher's stored top-K,  S = the stored top-k of p_0, the checkpoint that wrote the rollouts

S is p_0's list, not the list of the student in training, which moves on while the cache stays; the steps' `topk_left`
counts how much of its own top-k it has. Each support comes with the teacher's log mass outside it, added up from pieces
of the cache and never taken as 1 - mass:

    T               tail                                    (the stored log mass outside T, exact)
    T | S           tail - sum_{S \\ T} q                    (`_split_tail`: the one difference)
    S               outside of T | S, plus sum_{T \\ S} q
    T & S           tail + sum_{T \\ S} q
    T ^ S           outside of T | S, plus sum_{T & S} q

Lists lie on a grid, tails do not. `exact_mass` moves the teacher's list by the one number per row that makes it fit its
tail; `_split_tail` does the same for the student's other ids where they claim more than the tail holds. So the teacher
on the support and outside of it always is a distribution, and a KL against it is never negative.

Shapes: N positions, K stored teacher entries, k the student's, S entries of the support. Columns that are not members
of a row's support (rows of a union or an intersection have different sizes) repeat one of its members and are False in
`member_NS`; their log-probs are never read, so no -inf meets a 0. A row without a member repeats any id.
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

    @classmethod
    def of(cls, ids_NS: Tensor, log_q_NS: Tensor, log_outside_N: Tensor, member_NS: Tensor | None = None) -> "Support":
        """With columns that are no members replaced, and -inf by the least value a loss can bear."""
        if member_NS is None:
            member_NS = torch.ones_like(ids_NS, dtype=torch.bool)
        first_N1 = member_NS.long().argmax(1, keepdim=True)
        return cls(torch.where(member_NS, ids_NS, ids_NS.gather(1, first_N1)), log_q_NS.clamp_min(LEAST_LOG_Q),
                   log_outside_N.clamp_min(LEAST_LOG_Q), member_NS)


LARGEST_LOG_TAIL = -1e-9
"""A tail of all the mass, up to rounding: keeps the logarithm of the rest finite."""
LEAST_LOG_Q = -100.0
"""Stands in for a teacher's log-prob of -inf: mass there costs the student 100 nats, where the KL would be infinite."""
HALF_STEP = 1 / 64
"""Largest error of a log-prob on the default grid of 32."""
LARGEST_LOG_SHARE = -1e-12
"""A part that is the whole tail: what it leaves gets this share, so that its logarithm is finite."""
SUM_ERROR = 1e-5
"""Largest error of the logarithm of a float32 sum of probabilities down to e^-30."""

Selector = Callable[[TokenBatch], Support]


@dataclass(frozen=True)
class TeacherTopK:
    """S = the teacher's k most likely ids; k = None: all that are stored.

    Ids cut off by a k below the stored K move into the tail: log(1 - Q_k) = log(exp(tail_K) + sum_{k<j<=K} q_j).
    """

    k: int | None = None
    or_less: bool = False
    """A k above what is stored takes all of it instead of being refused."""

    def __call__(self, batch: TokenBatch) -> Support:
        k = stored_k(self.k, batch.teacher_topk_ids_NK, "teacher", self.or_less)
        log_q_NK = exact_mass(batch.teacher_topk_log_probs_NK, batch.teacher_log_tail_N)
        log_outside_N = torch.logaddexp(batch.teacher_log_tail_N, log_q_NK[:, k:].logsumexp(1))
        return Support.of(batch.teacher_topk_ids_NK[:, :k], log_q_NK[:, :k], log_outside_N)


@dataclass(frozen=True)
class StudentTopK:
    """S = p_0's k most likely ids; k = None: all that are stored."""

    k: int | None = None

    def __call__(self, batch: TokenBatch) -> Support:
        lists = _Lists.of(batch, student_k=stored_k(self.k, batch.student_topk_ids_Nk, "student"))
        return Support.of(lists.student_ids_Nk, lists.student_log_q_Nk, lists.log_outside(~lists.in_student_NK))


@dataclass(frozen=True)
class Union:
    """T_k | S_k: the teacher's k most likely ids, then those of p_0's that are not among them."""

    k: int | None = None

    def __call__(self, batch: TokenBatch) -> Support:
        lists, k = _Lists.of_both(batch, self.k)
        cut_NK = ~lists.in_student_NK
        cut_NK[:, :k] = False
        alone_Nk = ~among(lists.student_ids_Nk, lists.teacher_ids_NK[:, :k])
        member_NS = torch.cat([torch.ones_like(cut_NK[:, :k]), alone_Nk], 1)
        return Support.of(*lists.side_by_side(k), lists.log_outside(cut_NK), member_NS)


@dataclass(frozen=True)
class Intersection:
    """T_k & S_k, in p_0's order. A row without a common id has no member and loses nothing."""

    k: int | None = None
    or_less: bool = False
    """A k above what is stored of either list takes all of that one instead of being refused."""

    def __call__(self, batch: TokenBatch) -> Support:
        lists, k = _Lists.of_both(batch, self.k, self.or_less)
        cut_NK = ~lists.in_student_NK
        cut_NK[:, k:] = True
        common_Nk = among(lists.student_ids_Nk, lists.teacher_ids_NK[:, :k])
        outside_N = _plus(batch.teacher_log_tail_N, lists.teacher_log_q_NK, cut_NK)
        return Support.of(lists.student_ids_Nk, lists.student_log_q_Nk, outside_N, common_Nk)


@dataclass(frozen=True)
class SymmetricDifference:
    """T_k ^ S_k: ids that one list holds alone. A row of equal lists has no member and loses nothing."""

    k: int | None = None

    def __call__(self, batch: TokenBatch) -> Support:
        lists, k = _Lists.of_both(batch, self.k)
        alone_Nk = ~among(lists.student_ids_Nk, lists.teacher_ids_NK[:, :k])
        member_NS = torch.cat([~lists.in_student_NK[:, :k], alone_Nk], 1)
        cut_NK = lists.in_student_NK.clone()
        cut_NK[:, k:] = ~cut_NK[:, k:]
        return Support.of(*lists.side_by_side(k), lists.log_outside(cut_NK), member_NS)


@dataclass(frozen=True)
class _Lists:
    """Both stored lists as one distribution: the teacher at T, at p_0's other ids, and the rest."""

    teacher_ids_NK: Tensor
    teacher_log_q_NK: Tensor
    student_ids_Nk: Tensor
    student_log_q_Nk: Tensor
    in_student_NK: Tensor
    """Whether an id of the teacher's list is among the student's."""
    log_rest_N: Tensor
    """Teacher's log mass outside both lists."""

    @classmethod
    def of(cls, batch: TokenBatch, student_k: int) -> "_Lists":
        """The teacher's whole list and the first `student_k` of the student's."""
        teacher_ids_NK, student_ids_Nk = batch.teacher_topk_ids_NK, batch.student_topk_ids_Nk[:, :student_k]
        log_q_NK = exact_mass(batch.teacher_topk_log_probs_NK, batch.teacher_log_tail_N)
        moved_N = _moved_by(batch.teacher_topk_log_probs_NK, batch.teacher_log_tail_N)
        in_teacher_Nk = among(student_ids_Nk, teacher_ids_NK)
        log_q_Nk = batch.teacher_at_student_Nk[:, :student_k]
        others_Nk, log_rest_N = _split_tail(log_q_Nk, ~in_teacher_Nk, batch.teacher_log_tail_N)
        return cls(teacher_ids_NK, log_q_NK, student_ids_Nk,
                   torch.where(in_teacher_Nk, log_q_Nk + moved_N[:, None], others_Nk),
                   among(teacher_ids_NK, student_ids_Nk), log_rest_N)

    @classmethod
    def of_both(cls, batch: TokenBatch, k: int | None, or_less: bool = False) -> tuple["_Lists", int]:
        """The lists, the student's cut to k, and where the teacher's is cut."""
        student_k = stored_k(k, batch.student_topk_ids_Nk, "student", or_less)
        return cls.of(batch, student_k), stored_k(k, batch.teacher_topk_ids_NK, "teacher", or_less)

    def side_by_side(self, k: int) -> tuple[Tensor, Tensor]:
        """(ids_NS, log_q_NS) of the teacher's first k columns and all of the student's."""
        return (torch.cat([self.teacher_ids_NK[:, :k], self.student_ids_Nk], 1),
                torch.cat([self.teacher_log_q_NK[:, :k], self.student_log_q_Nk], 1))

    def log_outside(self, also_NK: Tensor) -> Tensor:
        """Log mass outside both lists, plus that of some of the teacher's."""
        return _plus(self.log_rest_N, self.teacher_log_q_NK, also_NK)


def stored_k(k: int | None, stored_NK: Tensor, whose: str, or_less: bool = False) -> int:
    """k, or all that is stored if None. Raises UserError for more than is stored, unless less will do."""
    stored = stored_NK.shape[1]
    if k is not None and k > stored:
        if or_less:
            return stored
        raise UserError(f"objective.k = {k}, but these scores hold the {whose}'s top {stored}: lower objective.k, or "
                        f"score again with score.{whose}_top_k = {k} (`opd rescore`)")
    return stored if k is None else k


def exact_mass(log_q_NK: Tensor, log_tail_N: Tensor) -> Tensor:
    """Shift each row so that its mass and the stored tail's add up to 1.

    Stored lists lie on a grid (up to 1/32 nat off, with a common part per row); the tail is an exact scalar. Without
    the shift the coarsened teacher is not a distribution and a KL against it can be negative. Renormalisation cancels
    the shift, so LSM does not notice.
    """
    return log_q_NK + _moved_by(log_q_NK, log_tail_N)[:, None]


def _moved_by(log_q_NK: Tensor, log_tail_N: Tensor) -> Tensor:
    log_mass_N = torch.log(-torch.expm1(log_tail_N.clamp_max(LARGEST_LOG_TAIL)))
    return log_mass_N - log_q_NK.logsumexp(1)


def _split_tail(log_q_Nk: Tensor, in_tail_Nk: Tensor, log_tail_N: Tensor) -> tuple[Tensor, Tensor]:
    """(log_q_Nk, log_rest_N): entries that lie in a tail, and what they leave of it, log(tail - sum of them).

    On a grid each entry, and so their sum, is off by a factor of at most e^(half a step), 1.6 % on grid 32; the rest is
    then off by at most 1.6 % of the sum. That matters only where the entries are nearly all of the tail. A sum above
    the tail proves rounding: the entries are shifted down to half a step below it, which leaves 1.6 % of the tail as
    the rest, the most that rounding can have hidden. A sum equal to the tail leaves nothing.
    """
    log_share_N = log_q_Nk.masked_fill(~in_tail_Nk, -torch.inf).logsumexp(1) - log_tail_N
    empty_N = ~log_share_N.isfinite()  # no entry in the tail, or no tail
    log_share_N = log_share_N.masked_fill(empty_N, -1.0)
    fitting_N = torch.where(log_share_N > SUM_ERROR, -HALF_STEP, log_share_N)
    log_rest_N = log_tail_N + torch.log(-torch.expm1(fitting_N.clamp_max(LARGEST_LOG_SHARE)))
    log_rest_N = torch.where(empty_N, log_tail_N, log_rest_N)
    return log_q_Nk + (fitting_N - log_share_N)[:, None], log_rest_N


def _plus(log_mass_N: Tensor, log_q_NK: Tensor, chosen_NK: Tensor) -> Tensor:
    return torch.logaddexp(log_mass_N, log_q_NK.masked_fill(~chosen_NK, -torch.inf).logsumexp(1))


def among(ids_NA: Tensor, list_NB: Tensor) -> Tensor:
    """Whether each id is in its row's list: bool [N, A], in memory of A + B per row."""
    sorted_NB = list_NB.sort(1).values
    place_NA = torch.searchsorted(sorted_NB, ids_NA.contiguous()).clamp_max(sorted_NB.shape[1] - 1)
    return sorted_NB.gather(1, place_NA) == ids_NA


SELECTORS: dict[str, Callable[[int | None], Selector]] = {
    "teacher_top_k": TeacherTopK, "student_top_k": StudentTopK, "union": Union, "intersection": Intersection,
    "symmetric_difference": SymmetricDifference}
"""By the name of `objective.support`; each is built with k."""

