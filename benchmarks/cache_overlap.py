"""A coding for the student's side that uses the overlap of both top-K lists: measured here, not used by the store.

Nine of ten student entries also are teacher entries, and there the teacher's log-prob is already stored, on the same
grid. So three columns take the place of student_topk_ids and teacher_log_probs_at_student_topk:

    student_topk_slots                  where each student entry lies in teacher_topk_ids ++ student_only_ids, from 1
    student_only_ids                    the student's entries that the teacher's list lacks, in the student's order
    teacher_log_probs_at_student_only   the teacher's log-probs of those

VIEW is the plain SQL that gives both columns back, exactly and without a lambda.

Arrays: N rows, K teacher entries, k student entries.
"""

import numpy as np
import pyarrow as pa

from storage.codec import fixed_lists_to_numpy

VIEW = """
select * exclude (student_topk_slots, student_only_ids, teacher_log_probs_at_student_only),
    list_select(list_concat(teacher_topk_ids, student_only_ids), student_topk_slots) as student_topk_ids,
    list_select(list_concat(teacher_topk_log_probs, teacher_log_probs_at_student_only), student_topk_slots)
        as teacher_log_probs_at_student_topk
from {table}
"""


def pack(table: pa.Table) -> pa.Table:
    """Return a `tokens` table with the three columns above instead of the two they replace."""
    teacher_ids_NK = fixed_lists_to_numpy(table["teacher_topk_ids"])
    student_ids_Nk = fixed_lists_to_numpy(table["student_topk_ids"])
    slots_Nk = _slots(teacher_ids_NK, student_ids_Nk)
    only_Nk = slots_Nk > teacher_ids_NK.shape[1]
    ends_N = np.cumsum(only_Nk.sum(1))
    offsets = pa.array(np.concatenate([[0], ends_N]).astype(np.int32))
    new = {
        "student_topk_slots": _fixed(slots_Nk),
        "student_only_ids": _lists(offsets, student_ids_Nk[only_Nk]),
        "teacher_log_probs_at_student_only": _lists(
            offsets, fixed_lists_to_numpy(table["teacher_log_probs_at_student_topk"])[only_Nk]),
    }
    table = table.drop_columns(["student_topk_ids", "teacher_log_probs_at_student_topk"])
    for name, array in new.items():
        table = table.append_column(pa.field(name, array.type, nullable=False), array)
    return table


def _slots(teacher_ids_NK: np.ndarray, student_ids_Nk: np.ndarray) -> np.ndarray:
    columns = []
    missing_N = np.zeros(len(teacher_ids_NK), np.int32)
    for student_ids_N in student_ids_Nk.T:
        same_NK = teacher_ids_NK == student_ids_N[:, None]
        found_N = same_NK.any(1)
        missing_N = missing_N + ~found_N
        columns.append(np.where(found_N, same_NK.argmax(1) + 1, teacher_ids_NK.shape[1] + missing_N))
    return np.stack(columns, 1).astype(np.int32)


def _fixed(values_Nk: np.ndarray) -> pa.Array:
    element = pa.field("element", pa.from_numpy_dtype(values_Nk.dtype), nullable=False)
    return pa.FixedSizeListArray.from_arrays(pa.array(values_Nk.ravel()), type=pa.list_(element, values_Nk.shape[1]))


def _lists(offsets: pa.Array, values: np.ndarray) -> pa.Array:
    element = pa.field("element", pa.from_numpy_dtype(values.dtype), nullable=False)
    return pa.ListArray.from_arrays(offsets, pa.array(values), type=pa.list_(element))
