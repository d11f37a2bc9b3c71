"""What a mask says, and putting several masks together.

    weight_n = product over masks of the weight each gave token n;   reasons_n = their reasons, in config order

Arrays: N tokens of a table, M marks of one mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage import schemas
from storage.errors import UserError


@dataclass(frozen=True)
class Marks:
    """Tokens that one mask touches: rows of a table, their weights, and which of `names` is the reason."""

    rows_M: np.ndarray
    weights_M: np.ndarray
    reasons_M: np.ndarray
    names: list[str]

    def cut(self, start: int, stop: int) -> "Marks":
        """The marks of rows start .. stop - 1, counted from `start`."""
        inside_M = (self.rows_M >= start) & (self.rows_M < stop)
        return Marks(self.rows_M[inside_M] - start, self.weights_M[inside_M], self.reasons_M[inside_M], self.names)


def zero(rows_M: np.ndarray, reasons_M: np.ndarray, names: list[str]) -> Marks:
    """Marks of weight 0."""
    return Marks(rows_M, np.zeros(len(rows_M)), reasons_M, names)


def mask_table(tokens: pa.Table, masks: Sequence[Marks]) -> pa.Table:
    """The mask of the tokens (schemas.MASK), row by row in their order."""
    weights_N = np.ones(tokens.num_rows)
    for marks in masks:
        np.multiply.at(weights_N, marks.rows_M, marks.weights_M)
    if (weights_N > np.finfo(np.float32).max).any():
        raise UserError("the masks' weights multiply to more than float32 holds: make them smaller")
    columns = [tokens["rollout_id"], tokens["position"], pa.array(weights_N.astype(np.float32)),
               _reason_lists(tokens.num_rows, masks)]
    return pa.table(columns, schema=schemas.MASK)


def counts(table: pa.Table) -> dict:
    """Facts of a mask: its tokens, how many have weight 0, and how many each reason touched."""
    reasons = pc.value_counts(table["reasons"].combine_chunks().flatten())
    return {"tokens": table.num_rows, "masked": int(np.count_nonzero(table["weight"].to_numpy() == 0)),
            "reasons": {each["values"]: each["counts"] for each in reasons.to_pylist()}}


def _reason_lists(count: int, masks: Sequence[Marks]) -> pa.Array:
    rows = np.concatenate([np.empty(0, np.int64), *(marks.rows_M for marks in masks)])
    names = pa.array([name for marks in masks for name in marks.names], pa.string())
    starts = np.cumsum([0, *(len(marks.names) for marks in masks)])
    indices = np.concatenate([np.empty(0, np.int64),
                              *(marks.reasons_M + start for marks, start in zip(masks, starts))])
    order = np.argsort(rows, kind="stable")
    ends = np.cumsum(np.bincount(rows, minlength=count))
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), names.take(pa.array(indices[order])))
