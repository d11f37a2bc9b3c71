"""Detector: tokens on which the teacher systematically disagrees with a student that is sure of them.

    flag token v  where  count(v) >= min_count,  mean(log q - log p) < max_log_ratio,  mean(p) > min_student_prob

p is the student's and q the teacher's probability of the sampled token, means are over the whole round. Sums run in
the order of the rows, in float64: the same flags on any number of threads. sql/masks/detector.sql says the same.
"""

import numpy as np
import pyarrow as pa

from pipeline.config.model import Detector
from pipeline.mask.marks import Marks, zero

COLUMNS = ["token_id", "teacher_log_prob", "student_log_prob"]


def flagged(tokens: pa.Table, settings: Detector) -> np.ndarray:
    """Token ids that the rule flags, ascending. `tokens` is the whole round, with COLUMNS."""
    ids, groups_N = np.unique(tokens["token_id"].to_numpy(), return_inverse=True)
    student_N = tokens["student_log_prob"].to_numpy().astype(np.float64)
    log_ratio_N = tokens["teacher_log_prob"].to_numpy().astype(np.float64) - student_N
    counts = np.bincount(groups_N, minlength=len(ids))
    log_ratio = np.bincount(groups_N, weights=log_ratio_N, minlength=len(ids)) / counts
    student_prob = np.bincount(groups_N, weights=np.exp(student_N), minlength=len(ids)) / counts
    return ids[(counts >= settings.min_count) & (log_ratio < settings.max_log_ratio)
               & (student_prob > settings.min_student_prob)]


def mark(tokens: pa.Table, ids: np.ndarray) -> Marks:
    """Marks of all occurrences of the flagged ids."""
    token_ids_N = tokens["token_id"].to_numpy()
    rows_M = np.flatnonzero(np.isin(token_ids_N, ids))
    return zero(rows_M, np.searchsorted(ids, token_ids_N[rows_M]), [f"detector:{token_id}" for token_id in ids])
