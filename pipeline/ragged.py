"""List columns as flat NumPy arrays on Arrow's buffers: no Python object per token.

Shapes: M lists (rollouts), S spans of all lists, N values.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Ragged:
    """A list column: the values of list m are values[starts[m]:starts[m] + lengths[m]], lists one after the other."""

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Ragged":
        """A column of lists of numbers, without nulls."""
        flat, lengths = _flattened(column)
        return cls(flat.to_numpy(zero_copy_only=True), starts_of(lengths), lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.starts[index]:self.starts[index] + self.lengths[index]]


@dataclass(frozen=True)
class Spans:
    """A column of lists of spans {start, end}, such as `turns`: every span, and the list it stands in."""

    starts_S: np.ndarray
    ends_S: np.ndarray
    owners_S: np.ndarray

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Spans":
        flat, lengths = _flattened(column)
        starts_S, ends_S = (flat.field(name).to_numpy().astype(np.int64) for name in ("start", "end"))
        return cls(starts_S, ends_S, np.repeat(np.arange(len(lengths)), lengths))

    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """(owner_N, position_N): every position inside a span, in order."""
        lengths_S = self.ends_S - self.starts_S
        return np.repeat(self.owners_S, lengths_S), ranges(self.starts_S, lengths_S)

    def misfits(self, lengths_M: np.ndarray) -> np.ndarray:
        """bool [M]: lists with a span that is not in order, overlaps the one before, or ends behind `lengths_M`."""
        before_S = np.where(self.owners_S == np.roll(self.owners_S, 1), np.roll(self.ends_S, 1), 0)
        before_S[:1] = 0
        bad_S = (self.starts_S < before_S) | (self.ends_S < self.starts_S) | (self.ends_S > lengths_M[self.owners_S])
        bad_M = np.zeros(len(lengths_M), dtype=bool)
        bad_M[self.owners_S[bad_S]] = True
        return bad_M


def _flattened(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    lists = column.combine_chunks()
    return lists.flatten(), np.diff(lists.offsets.to_numpy()).astype(np.int64)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0] .. starts[0] + lengths[0] - 1, starts[1] .. , and so on, as one array."""
    return np.repeat(starts - starts_of(lengths), lengths) + np.arange(lengths.sum())


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """Where each of several lists begins, if they lie one after the other."""
    return np.cumsum(lengths) - lengths
