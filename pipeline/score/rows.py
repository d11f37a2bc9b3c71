"""Which tokens get a row of `tokens`, and which rollouts are run together.

A row is a token that the student wrote (inside a span of `turns`); tokens of an environment are read by the models and
have none. The token at response position p is predicted by the hidden state at index P + p - 1 of its own sequence; the
first one of every sample by the last one of their prompt.

Arrays: M rollouts, N rows, R rows and T tokens of a batch, P prompt tokens. Everything is numpy on Arrow's
buffers: no Python object per token.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.ragged import Ragged, Spans
from pipeline.score.segments import Segments
from storage.errors import IntegrityError


@dataclass(frozen=True)
class Batch:
    """Rollouts of one forward pass as one flat sequence, every prompt once, and the rows that it predicts."""

    input_ids_T: np.ndarray
    segments: Segments
    hidden_index_R: np.ndarray
    """Place of each row's hidden state among the T."""
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
        self.fed_M = self._fed()
        """Response tokens that are read, all up to the last row's own; -1 for a rollout without rows."""

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
        """Longest rollouts first, the samples of a prompt together, at most `max_tokens` tokens; a longer rollout runs
        alone. Samples of a prompt that are more than that read it once per batch.

        `members`: places in `self.rollouts`, all of them if None. The same members give the same batches.
        """
        batch, tokens = [], 0
        for tree in self._trees(max_tokens, members):
            if batch and tokens + self._tokens(tree) > max_tokens:
                yield self._batch(batch)
                batch, tokens = [], 0
            batch.append(tree)
            tokens += self._tokens(tree)
        if batch:
            yield self._batch(batch)

    def _trees(self, max_tokens: int, members: Container[int] | None) -> list[list[int]]:
        """Rollouts with rows by prompt, the longest first, cut where a prompt's are too many for one batch."""
        chosen = [index for index in np.argsort(-self.fed_M, kind="stable").tolist()
                  if self.fed_M[index] >= 0 and (members is None or index in members)]
        trees: dict[bytes, list[list[int]]] = {}
        for index in chosen:
            same_prompt = trees.setdefault(self.prompts[index].tobytes(), [[]])
            if same_prompt[-1] and self._tokens([*same_prompt[-1], index]) > max_tokens:
                same_prompt.append([])
            same_prompt[-1].append(index)
        return sorted((tree for same_prompt in trees.values() for tree in same_prompt),
                      key=lambda tree: (-self.prompts.lengths[tree[0]] - self.fed_M[tree[0]], tree[0]))

    def _tokens(self, tree: list[int]) -> int:
        return int(self.prompts.lengths[tree[0]] + self.fed_M[tree].sum())

    def _batch(self, trees: list[list[int]]) -> Batch:
        ids, lengths, prompts, hidden, rows, parts = [], [], [], [], [], []
        tokens = count = 0
        for tree in trees:
            prompt, prompt_segment = self.prompts[tree[0]], len(lengths)
            ids.append(prompt)
            lengths.append(len(prompt))
            prompts.append(prompt_segment)
            prompt_end = tokens = tokens + len(prompt)
            for member in tree:
                member_rows = np.arange(self.first_row_M[member], self.first_row_M[member + 1])
                position_R, fed = self.position_N[member_rows], int(self.fed_M[member])
                hidden.append(np.where(position_R == 0, prompt_end, tokens + position_R) - 1)
                rows.append(member_rows)
                parts.append((member, slice(count, count := count + len(member_rows))))
                if fed:
                    ids.append(self.responses[member][:fed])
                    lengths.append(fed)
                    prompts.append(prompt_segment)
                    tokens += fed
        return Batch(np.concatenate(ids).astype(np.int64), Segments(np.array(lengths), np.array(prompts)),
                     np.concatenate(hidden), np.concatenate(rows), parts)

    def _written(self) -> tuple[np.ndarray, np.ndarray]:
        """Rollout and position of every row."""
        turns = Spans.of(self.rollouts["turns"])
        self._refuse(turns.misfits(self.responses.lengths), "turns are not ordered spans of response_tokens")
        self._refuse(self.prompts.lengths == 0, "prompt_tokens is empty, so nothing predicts the first token")
        return turns.positions()

    def _fed(self) -> np.ndarray:
        written_M = np.diff(self.first_row_M) > 0
        fed_M = np.full(len(self.rollouts), -1)
        fed_M[written_M] = self.position_N[self.first_row_M[1:][written_M] - 1]
        return fed_M

    def _at_rows(self, ragged: Ragged) -> np.ndarray:
        return ragged.values[ragged.starts[self.rollout_N] + self.position_N]

    def _refuse(self, bad_M: np.ndarray, problem: str) -> None:
        if bad_M.any():
            rollout_id = self.rollouts["rollout_id"][int(np.argmax(bad_M))].as_py()
            raise IntegrityError(f"rollout {rollout_id}: {problem}; the rollouts were damaged or written by another "
                                 "version, run `opd verify`")
