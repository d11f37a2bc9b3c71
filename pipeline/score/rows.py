"""Which tokens get a row of `tokens`, and which rollouts are run together.

A row is a token that the student wrote (inside a span of `turns`); tokens of an environment are read by the models and
have none. The token at response position p is predicted by the hidden state at sequence index P + p - 1.

Arrays: M rollouts, N rows, P prompt tokens. Everything is numpy on Arrow's buffers: no Python object per token.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.ragged import Ragged, Spans
from storage.errors import IntegrityError


@dataclass(frozen=True)
class Batch:
    """Rollouts of one forward pass, padded on the right, and the rows that it predicts."""

    input_ids_BT: np.ndarray
    hidden_index_R: np.ndarray
    """Index of each row's hidden state in the flattened [B * T]."""
    row_R: np.ndarray
    """Index of each row in the table."""
    parts: list[tuple[int, slice]]
    """Each rollout's place in TokenRows.rollouts, and its rows among `row_R`."""


class TokenRows:
    """The rows of a shard in the order (prompt_id, rollout_id, position)."""

    def __init__(self, rollouts: pa.Table):
        """Raises IntegrityError if the lists of a rollout do not fit each other."""
        self.rollouts = rollouts = rollouts.sort_by([("prompt_id", "ascending"), ("rollout_id", "ascending")])
        self.prompts, self.responses = (Ragged.of(rollouts[name]) for name in ("prompt_tokens", "response_tokens"))
        self.rollout_N, self.position_N = self._written()
        self.first_row_M = np.searchsorted(self.rollout_N, np.arange(len(rollouts) + 1))
        self.token_N = self._at_rows(self.responses)

    def __len__(self) -> int:
        return len(self.rollout_N)

    def per_token(self, column: str) -> np.ndarray:
        """A list column with one value per response token, at the rows."""
        ragged = Ragged.of(self.rollouts[column])
        self._refuse(ragged.lengths != self.responses.lengths, f"{column} has another length than response_tokens")
        return self._at_rows(ragged)

    def per_rollout(self, column: str) -> pa.ChunkedArray:
        """A scalar column, repeated for every row."""
        return self.rollouts[column].take(pa.array(self.rollout_N))

    def rows_of(self, rollout: int) -> slice:
        """Rows of a rollout, given by its place in `self.rollouts`."""
        return slice(int(self.first_row_M[rollout]), int(self.first_row_M[rollout + 1]))

    def batches(self, max_tokens: int, members: Container[int] | None = None) -> Iterator[Batch]:
        """Longest rollouts first, at most `max_tokens` tokens with padding; a longer rollout runs alone.

        `members`: places in `self.rollouts`, all of them if None. The same members give the same batches.
        """
        last_row_M = self.first_row_M[1:] - 1
        written_M = last_row_M >= self.first_row_M[:-1]
        last_position_M = np.where(written_M, self.position_N[np.maximum(last_row_M, 0)] if len(self) else 0, 0)
        fed_M = self.prompts.lengths + last_position_M
        order = [index for index in np.lexsort((np.arange(len(fed_M)), -fed_M))
                 if written_M[index] and (members is None or index in members)]
        while order:
            fit = max(1, max_tokens // int(fed_M[order[0]]))
            yield self._batch(order[:fit], fed_M)
            order = order[fit:]

    def _batch(self, members: list[int], fed_M: np.ndarray) -> Batch:
        width = int(fed_M[members[0]])
        input_ids_BT = np.zeros((len(members), width), dtype=np.int64)
        hidden, rows, parts, count = [], [], [], 0
        for line, member in enumerate(members):
            prompt = self.prompts[member]
            fed = int(fed_M[member])
            input_ids_BT[line, :len(prompt)] = prompt
            input_ids_BT[line, len(prompt):fed] = self.responses[member][:fed - len(prompt)]
            member_rows = np.arange(self.first_row_M[member], self.first_row_M[member + 1])
            hidden.append(line * width + len(prompt) + self.position_N[member_rows] - 1)
            rows.append(member_rows)
            parts.append((member, slice(count, count := count + len(member_rows))))
        return Batch(input_ids_BT, np.concatenate(hidden), np.concatenate(rows), parts)

    def _written(self) -> tuple[np.ndarray, np.ndarray]:
        """Rollout and position of every row."""
        turns = Spans.of(self.rollouts["turns"])
        self._refuse(turns.misfits(self.responses.lengths), "turns are not ordered spans of response_tokens")
        self._refuse(self.prompts.lengths == 0, "prompt_tokens is empty, so nothing predicts the first token")
        return turns.positions()

    def _at_rows(self, ragged: Ragged) -> np.ndarray:
        return ragged.values[ragged.starts[self.rollout_N] + self.position_N]

    def _refuse(self, bad_M: np.ndarray, problem: str) -> None:
        if bad_M.any():
            rollout_id = self.rollouts["rollout_id"][int(np.argmax(bad_M))].as_py()
            raise IntegrityError(f"rollout {rollout_id}: {problem}; the rollouts were damaged or written by another "
                                 "version, run `opd verify`")
