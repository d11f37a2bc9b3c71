"""Which tokens get a row of `tokens`, and which rollouts are run together.

A row is a token that the student wrote (inside a span of `turns`); tokens of an environment are read by the models and
have none. The token at response position p is predicted by the hidden state at sequence index P + p - 1.

Arrays: M rollouts, N rows, P prompt tokens. Everything is numpy on Arrow's buffers: no Python object per token.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from storage.errors import IntegrityError


@dataclass(frozen=True)
class Ragged:
    """A list column: the values of list m are values[starts[m]:ends[m]]."""

    values: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.starts[index]:self.ends[index]]

    @property
    def lengths(self) -> np.ndarray:
        return self.ends - self.starts


@dataclass(frozen=True)
class Batch:
    """Rollouts of one forward pass, padded on the right, and the rows that it predicts."""

    input_ids_BT: np.ndarray
    hidden_index_R: np.ndarray
    """Index of each row's hidden state in the flattened [B * T]."""
    row_R: np.ndarray
    """Index of each row in the table."""


class TokenRows:
    """The rows of a shard in the order (prompt_id, rollout_id, position)."""

    def __init__(self, rollouts: pa.Table):
        """Raises IntegrityError if the lists of a rollout do not fit each other."""
        self.rollouts = rollouts = rollouts.sort_by([("prompt_id", "ascending"), ("rollout_id", "ascending")])
        self.prompts, self.responses = _ragged(rollouts["prompt_tokens"]), _ragged(rollouts["response_tokens"])
        starts, ends, owners = self._spans()
        lengths = ends - starts
        self.rollout_N = np.repeat(owners, lengths)
        self.position_N = _ranges(starts, lengths)
        self.first_row_M = np.searchsorted(self.rollout_N, np.arange(len(rollouts) + 1))
        self.token_N = self._at_rows(self.responses)

    def __len__(self) -> int:
        return len(self.rollout_N)

    def per_token(self, column: str) -> np.ndarray:
        """A list column with one value per response token, at the rows."""
        ragged = _ragged(self.rollouts[column])
        self._refuse(ragged.lengths != self.responses.lengths, f"{column} has another length than response_tokens")
        return self._at_rows(ragged)

    def per_rollout(self, column: str) -> pa.ChunkedArray:
        """A scalar column, repeated for every row."""
        return self.rollouts[column].take(pa.array(self.rollout_N))

    def batches(self, max_tokens: int) -> Iterator[Batch]:
        """Longest rollouts first, at most `max_tokens` tokens with padding; a longer rollout runs alone."""
        last_row_M = self.first_row_M[1:] - 1
        written_M = last_row_M >= self.first_row_M[:-1]
        last_position_M = np.where(written_M, self.position_N[np.maximum(last_row_M, 0)] if len(self) else 0, 0)
        fed_M = self.prompts.lengths + last_position_M
        order = [index for index in np.lexsort((np.arange(len(fed_M)), -fed_M)) if written_M[index]]
        while order:
            fit = max(1, max_tokens // int(fed_M[order[0]]))
            yield self._batch(order[:fit], fed_M)
            order = order[fit:]

    def _batch(self, members: list[int], fed_M: np.ndarray) -> Batch:
        width = int(fed_M[members[0]])
        input_ids_BT = np.zeros((len(members), width), dtype=np.int64)
        hidden, rows = [], []
        for line, member in enumerate(members):
            prompt = self.prompts[member]
            fed = int(fed_M[member])
            input_ids_BT[line, :len(prompt)] = prompt
            input_ids_BT[line, len(prompt):fed] = self.responses[member][:fed - len(prompt)]
            member_rows = np.arange(self.first_row_M[member], self.first_row_M[member + 1])
            hidden.append(line * width + len(prompt) + self.position_N[member_rows] - 1)
            rows.append(member_rows)
        return Batch(input_ids_BT, np.concatenate(hidden), np.concatenate(rows))

    def _spans(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Start and end of every span, and the rollout it belongs to."""
        turns = self.rollouts["turns"].combine_chunks()
        offsets, spans = turns.offsets.to_numpy(), turns.values
        starts = spans.field("start").to_numpy()[offsets[0]:offsets[-1]].astype(np.int64)
        ends = spans.field("end").to_numpy()[offsets[0]:offsets[-1]].astype(np.int64)
        owners = np.repeat(np.arange(len(turns)), np.diff(offsets))
        after = np.where(owners == np.roll(owners, 1), np.roll(ends, 1), 0)
        after[:1] = 0
        bad = np.zeros(len(turns), dtype=bool)
        bad[owners[(starts < after) | (ends < starts) | (ends > self.responses.lengths[owners])]] = True
        self._refuse(bad, "turns are not ordered spans of response_tokens")
        self._refuse(self.prompts.lengths == 0, "prompt_tokens is empty, so nothing predicts the first token")
        return starts, ends, owners

    def _at_rows(self, ragged: Ragged) -> np.ndarray:
        return ragged.values[ragged.starts[self.rollout_N] + self.position_N]

    def _refuse(self, bad_M: np.ndarray, problem: str) -> None:
        if bad_M.any():
            rollout_id = self.rollouts["rollout_id"][int(np.argmax(bad_M))].as_py()
            raise IntegrityError(f"rollout {rollout_id}: {problem}; the rollouts were damaged or written by another "
                                 "version, run `opd verify`")


def _ragged(column: pa.ChunkedArray) -> Ragged:
    lists = column.combine_chunks()
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return Ragged(lists.values.to_numpy(), offsets[:-1], offsets[1:])


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenation of arange(start, start + length)."""
    first = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) - np.repeat(first - starts, lengths)
