"""A teacher's payload: what it said about one rollout when another round scored it, cut and looked up, never changed.

Promises: the sampled token's log-prob, rank and entropy and the list's first K entries are the stored bits. The tail
behind a list that is not cut is too. A cut list's tail takes in what is cut off,

    log tail_K = log(exp(log tail_J) + sum_{K < j <= J} q_j),

from an exact tail and entries on the grid, each within half a step of the exact one: so it is off by less than half a
step too, 1/64 nat at grid 32. That is as exact as everything else known of the entries it takes in. Receipts count
such rollouts (`cut`); whoever wants the last digits scores again without `score.reuse`.

A vLLM teacher's payload is partial: NaN stands for what it does not know, and an id outside its list is not known.

Arrays: R rows of the rollout in order of position, J stored teacher entries, K <= J wanted ones, k ids asked for,
E ids known per row.
"""

from dataclasses import dataclass

import numpy as np

from storage.records import ShardFile

TEACHER_COLUMNS = ("teacher_log_prob", "teacher_rank", "teacher_entropy", "teacher_log_tail", "teacher_topk_ids",
                   "teacher_topk_log_probs")
"""Depend on the teacher and the tokens alone."""
STORED_COLUMNS = ("position", "token_id", *TEACHER_COLUMNS, "student_topk_ids", "teacher_log_probs_at_student_topk")
"""What is kept of a source: with the last two, the teacher is known at more ids than its own."""


@dataclass(frozen=True)
class Payload:
    """One rollout's payload, the file it lies in, and the manifest id of the round whose teacher computed it."""

    manifest: str | None
    """None: the teacher has just been asked."""
    file: ShardFile | None
    columns: dict[str, np.ndarray]
    """STORED_COLUMNS, by name."""
    partial: bool = False
    """Whether the teacher leaves things unknown, so that asking it again would not tell more."""

    @property
    def width(self) -> int:
        """J."""
        return self.columns["teacher_topk_ids"].shape[1]

    def fits(self, position_R: np.ndarray, token_R: np.ndarray) -> bool:
        """Whether its rows are those of the same tokens at the same positions: equal tokens may be cut into turns in
        other ways."""
        return (np.array_equal(self.columns["position"], position_R)
                and np.array_equal(self.columns["token_id"], token_R))

    def teacher_columns(self, width: int) -> dict[str, np.ndarray]:
        """TEACHER_COLUMNS with lists of `width` entries."""
        columns = {name: self.columns[name] for name in TEACHER_COLUMNS}
        if width == self.width:
            return columns
        dropped_RJ = columns["teacher_topk_log_probs"][:, width:].astype(np.float64)
        tail_R1 = columns["teacher_log_tail"][:, None].astype(np.float64)
        log_tail_R = np.logaddexp.reduce(np.concatenate([tail_R1, dropped_RJ], axis=1), axis=1)
        return columns | {"teacher_topk_ids": columns["teacher_topk_ids"][:, :width],
                          "teacher_topk_log_probs": columns["teacher_topk_log_probs"][:, :width],
                          "teacher_log_tail": np.minimum(log_tail_R, 0.0).astype(np.float32)}

    def log_probs_at(self, ids_Rk: np.ndarray) -> np.ndarray | None:
        """The teacher's log-probs at any ids, on the grid; None if one of them is not known, NaN there if partial."""
        ids_RE = np.concatenate([self.columns["teacher_topk_ids"], self.columns["student_topk_ids"]], axis=1)
        log_probs_RE = np.concatenate([self.columns["teacher_topk_log_probs"],
                                       self.columns["teacher_log_probs_at_student_topk"]], axis=1)
        if not ids_RE.size:
            return np.full(ids_Rk.shape, np.nan, dtype=np.float32)
        known, wanted = _keys(ids_RE), _keys(ids_Rk)
        order = np.argsort(known)
        place = order[np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)]
        missing = known[place] != wanted
        if missing.any() and not self.partial:
            return None
        return np.where(missing, np.float32(np.nan), log_probs_RE.reshape(-1)[place]).reshape(ids_Rk.shape)


def _keys(ids_RE: np.ndarray) -> np.ndarray:
    """One integer per row and id."""
    return ((np.arange(len(ids_RE))[:, None] << 32) + ids_RE).reshape(-1)
