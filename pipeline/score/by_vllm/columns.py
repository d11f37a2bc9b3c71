"""The teacher's columns from what vLLM says of prompt tokens: per position the token itself and the likeliest ids.

vLLM normalises over its whole head. Ids beyond the shared ones (padded rows, tokens that the student lacks) are dropped
from the lists, and the mass that they were seen to carry is taken out of every log-prob:

    log q(y) = log q_head(y) - log(1 - sum of q_head over listed ids that are not shared)

What unlisted ones carry is measured on a sample (teacher_probes.py). Lists are ordered as our scorer orders them,
descending, ties by lower id. The tail is log(1 - mass), in float64 from log-probs that vLLM summed in float32: good to
2e-6, so it is unknown (NaN) below RESOLUTION. A rank outside the list is vLLM's, which counts ties.

Arrays: N rows, J entries listed, K entries kept.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.config.model import Score
from storage.codec import snap
from storage.errors import UserError

RESOLUTION = 1e-4
"""Probability: a smaller tail is lost in rounding. At this one 2e-6 are .02 nat, not far above the grid's .016."""
SPARE = 8
"""Entries asked for beyond K where the teacher's head has rows that are not shared."""
ASKED_TOGETHER = 128
"""Ids whose log-probs one request asks for by name: vLLM takes no more."""
LARGEST_MASS = 1.001
"""Of a list: more is no distribution."""


@dataclass(frozen=True)
class Listed:
    """What vLLM says of N tokens."""

    log_probs_N: np.ndarray
    """float64, the token's own."""
    ranks_N: np.ndarray
    """int64, from 1, over the whole head."""
    ids_NJ: np.ndarray
    """int64, distinct in each row."""
    log_probs_NJ: np.ndarray
    """float64."""

    @classmethod
    def joined(cls, parts: list["Listed"]) -> "Listed":
        """One after the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


def head_rows_of(teacher: dict[str, Any], shared: int) -> int:
    """Rows of the head of run.json's teacher, which are more than the shared ids where it is padded."""
    return max(shared, teacher["vocab_size"] or 0)


def entries_asked(settings: Score, shared: int, head_rows: int) -> int:
    """J: how many ids are asked for per position."""
    return min(settings.teacher_top_k + (SPARE if head_rows > shared else 0), head_rows)


def teacher_columns(listed: Listed, token_N: np.ndarray, shared: int, settings: Score,
                    name: str) -> dict[str, np.ndarray]:
    """The teacher's columns of `tokens` by name, NaN where unknown. Raises UserError for lists that are none."""
    _check(listed, name)
    ids_NK, log_probs_NK, moved_N = _kept(listed, shared, settings.teacher_top_k, name)
    log_probs_N = np.minimum(listed.log_probs_N + moved_N, 0.0)
    return {"teacher_log_prob": log_probs_N.astype(np.float32),
            "teacher_rank": _ranks(listed, token_N, shared, ids_NK, log_probs_NK, log_probs_N),
            "teacher_entropy": np.full(len(token_N), np.nan, np.float32),
            "teacher_log_tail": _log_tails(log_probs_NK, complete=settings.teacher_top_k == shared),
            "teacher_topk_ids": ids_NK.astype(np.int32),
            "teacher_topk_log_probs": snap(log_probs_NK.astype(np.float32), settings.grid)}


def _kept(listed: Listed, shared: int, k: int, name: str):
    """(ids_NK, log_probs_NK) over the shared ids, and what leaving out the others adds to each log-prob, in nats."""
    shared_NJ = listed.ids_NJ < shared
    if (shared_NJ.sum(1) < k).any():
        raise UserError(f"{name} lists {(~shared_NJ).sum(1).max()} ids that the student does not have among the first "
                        f"{listed.ids_NJ.shape[1]} of a token, fewer than score.teacher_top_k = {k} are left: lower "
                        "it, or use a teacher with the student's tokenizer")
    unshared_mass_N = np.where(shared_NJ, 0.0, np.exp(listed.log_probs_NJ)).sum(1)
    moved_N = -np.log1p(-np.minimum(unshared_mass_N, 1 - 1e-9))
    ranked_NJ = np.where(shared_NJ, listed.log_probs_NJ, -np.inf)
    order_NK = np.lexsort((listed.ids_NJ, -ranked_NJ), axis=1)[:, :k]
    log_probs_NK = np.take_along_axis(ranked_NJ, order_NK, 1) + moved_N[:, None]
    return np.take_along_axis(listed.ids_NJ, order_NK, 1), np.minimum(log_probs_NK, 0.0), moved_N


def _ranks(listed: Listed, token_N, shared: int, ids_NK, log_probs_NK, log_probs_N) -> np.ndarray:
    """1 + the number of likelier shared ids: counted in the list, else vLLM's count less the other ids it lists."""
    k = ids_NK.shape[1]
    unshared_N = ((listed.ids_NJ >= shared) & (listed.log_probs_NJ > listed.log_probs_N[:, None])).sum(1)
    inside_N = (ids_NK == token_N[:, None]).any(1)
    counted_N = 1 + (log_probs_NK > log_probs_N[:, None]).sum(1)
    return np.where(inside_N, counted_N, np.maximum(listed.ranks_N - unshared_N, k + 1)).astype(np.int32)


def _log_tails(log_probs_NK: np.ndarray, complete: bool) -> np.ndarray:
    """log(1 - mass), NaN where rounding hides it; -inf where the list is the whole vocabulary."""
    if complete:
        return np.full(len(log_probs_NK), -np.inf, np.float32)
    tail_N = 1.0 - np.exp(log_probs_NK).sum(1)
    return np.log(np.where(tail_N < RESOLUTION, np.nan, tail_N)).astype(np.float32)


def _check(listed: Listed, name: str) -> None:
    ordered_NJ = np.sort(listed.ids_NJ, axis=1)
    if (ordered_NJ[:, 1:] == ordered_NJ[:, :-1]).any():
        raise UserError(f"{name} lists a token id twice at one position: these are no log-probs of one model")
    mass_N = np.exp(listed.log_probs_NJ).sum(1)
    if len(mass_N) and not mass_N.max() <= LARGEST_MASS:
        raise UserError(f"{name} lists ids with a probability of {mass_N.max():.4g} together: these are no log-probs; "
                        "a server must not be started with --logprobs-mode raw_logits or processed_logits")
