"""Gates on a shard's scores, before anything is written: a teacher that says nothing must not become data.

Every gate reads the finished columns with numpy and stops the shard with one line. They look for what was seen in
public code: zeros (a missing value, probability 1), a uniform -ln V, NaN, log-probs above 0, scores that belong to the
neighbouring token, columns of another length. The last one compares with the engine that wrote the rollouts.

Arrays: N rows, K entries of the teacher's list.
"""

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.codec import fixed_lists_to_numpy
from storage.errors import IntegrityError, UserError

MIN_ROWS = 16
"""Fewer rows may be all alike by chance."""
MIN_SHIFT_ROWS = 64
MAX_LOG_PROB = 1e-5
UNIFORM_TOLERANCE = 1e-4
SHIFT_MARGIN = 1.0
"""Nats by which the neighbouring token must fit better, on average."""
MAX_STUDENT_DIFFERENCE = 0.5
"""Nats between engine and scorer under the same weights, on average; bfloat16 engines differ by .01 to .05."""

SCALARS = ("rollout_log_prob", "sampling_log_prob", "student_log_prob", "student_entropy", "teacher_log_prob",
           "teacher_entropy")
LISTS = ("teacher_topk_log_probs", "student_topk_log_probs", "teacher_log_probs_at_student_topk",
         "student_log_probs_at_teacher_topk")
TAILS = ("teacher_log_tail", "student_log_tail")


def check_scores(scores: pa.Table, rollouts: pa.Table, shared_vocab: int) -> None:
    """Run every gate. Raises UserError for a teacher that is silent, IntegrityError for scores of other rollouts."""
    check_length(scores, rollouts)
    if scores.num_rows:
        check_numbers(scores)
        check_not_constant(scores, shared_vocab)
        check_alignment(scores)
        check_student(scores)


def check_length(scores: pa.Table, rollouts: pa.Table) -> None:
    """One row per token that the student wrote."""
    turns = rollouts["turns"].combine_chunks().flatten()
    written = pc.sum(pc.subtract(turns.field("end"), turns.field("start"))).as_py() or 0
    if scores.num_rows != written:
        raise IntegrityError(f"wrong length: {scores.num_rows} scores for {written} tokens of the student; the scores "
                             "belong to other rollouts")


def check_numbers(scores: pa.Table) -> None:
    """No NaN, no infinity except an empty tail, no probability above 1. Null is no number: not known."""
    for name in SCALARS + TAILS + LISTS:
        if name not in scores.column_names:
            continue
        values = _known(scores, name)
        if not len(values):
            continue
        finite = np.isfinite(values) | (np.isneginf(values) & (name in TAILS))
        if not finite.all():
            raise UserError(f"{name} is NaN or infinite on {_share(~finite)}: the model's logits are broken; check its "
                            "weights, or run it with dtype = 'float32'")
        if not name.endswith("entropy") and values.max() > MAX_LOG_PROB:
            raise UserError(f"{name} is {values.max():.3g}, a probability above 1, on "
                            f"{_share(values > MAX_LOG_PROB)}: these are no normalised log-probs")


def check_not_constant(scores: pa.Table, shared_vocab: int) -> None:
    """Not all 0, not all -ln V, not all one number."""
    values = _values(scores, "teacher_log_prob")
    if len(values) < MIN_ROWS:
        return
    if not values.any():
        raise UserError(f"silent teacher: teacher_log_prob is 0 (probability 1) on all {len(values)} tokens; its "
                        "scores are missing")
    if (np.abs(values + math.log(shared_vocab)) < UNIFORM_TOLERANCE).all():
        raise UserError(f"silent teacher: teacher_log_prob is -ln {shared_vocab} on all {len(values)} tokens, it "
                        "prefers no token to another; its weights were not loaded")
    if np.ptp(values) == 0:
        raise UserError(f"silent teacher: teacher_log_prob is {values[0]:.6g} on all {len(values)} tokens; it does "
                        "not read its input")


def check_alignment(scores: pa.Table) -> None:
    """The teacher's list at a position fits that position's token, not the one before or after."""
    rollout_id, position = _values(scores, "rollout_id"), _values(scores, "position")
    follows = (rollout_id[1:] == rollout_id[:-1]) & (position[1:] == position[:-1] + 1)
    middle = 1 + np.flatnonzero(follows[1:] & follows[:-1])
    if len(middle) < MIN_SHIFT_ROWS:
        return
    own = _mean_fit(scores, middle, 0)
    for shift, neighbour in ((1, "next"), (-1, "previous")):
        shifted = _mean_fit(scores, middle, shift)
        if shifted > own + SHIFT_MARGIN:
            raise UserError(f"silent teacher: its scores are shifted, they fit the {neighbour} token better than their "
                            f"own (mean log-prob {shifted:.2f} against {own:.2f} on {len(middle)} tokens)")


def check_student(scores: pa.Table) -> None:
    """The checkpoint that was scored wrote these rollouts: the engine's log-probs agree with ours on average."""
    difference = np.abs(_values(scores, "student_log_prob") - _values(scores, "rollout_log_prob"))
    if len(difference) >= MIN_ROWS and difference.mean() > MAX_STUDENT_DIFFERENCE:
        raise IntegrityError(f"the student's log-probs differ from those of the rollout engine by "
                             f"{difference.mean():.2f} nats on average over {len(difference)} tokens: this checkpoint "
                             "did not write these rollouts, or the engine's log-probs are not raw")


def _mean_fit(scores: pa.Table, row_M: np.ndarray, shift: int) -> float:
    """Mean log-prob that the teacher's list gives to the token `shift` rows on; outside, the most it can be."""
    ids_MK = fixed_lists_to_numpy(scores["teacher_topk_ids"])[row_M]
    log_probs_MK = fixed_lists_to_numpy(scores["teacher_topk_log_probs"])[row_M]
    hit_MK = ids_MK == _values(scores, "token_id")[row_M + shift, None]
    outside_M = np.fmin(log_probs_MK[:, -1], _values(scores, "teacher_log_tail")[row_M])
    inside_M = np.where(hit_MK, log_probs_MK, 0.0).sum(axis=1)
    return float(np.where(hit_MK.any(axis=1), inside_M, outside_M).mean(dtype=np.float64))


def _values(scores: pa.Table, name: str) -> np.ndarray:
    """NaN where null."""
    column = scores[name]
    if pa.types.is_fixed_size_list(column.type):
        return fixed_lists_to_numpy(column)
    return column.to_numpy()


def _known(scores: pa.Table, name: str) -> np.ndarray:
    """Without nulls; a list with some, flat."""
    column = scores[name]
    if pa.types.is_fixed_size_list(column.type) and column.type.value_field.nullable:
        return column.combine_chunks().flatten().drop_null().to_numpy(zero_copy_only=False)
    return _values(scores, name) if not column.null_count else column.drop_null().to_numpy()


def _share(bad: np.ndarray) -> str:
    rows = bad if bad.ndim == 1 else bad.any(axis=1)
    return f"{int(rows.sum())} of {len(rows)} tokens"
