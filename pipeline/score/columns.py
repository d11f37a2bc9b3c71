"""The columns of `tokens`: filled chunk by chunk and in any order, then handed to Arrow as they are."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from pipeline.score.rows import TokenRows
from storage import schemas

FROM_ROLLOUTS = ("rollout_id", "prompt_id", "task")
MARKED = ("reused_from",)


class Columns:
    """What the models say about each row; N rows."""

    def __init__(self, rows: TokenRows, width: schemas.TopK):
        self.rows, self.schema = rows, schemas.tokens(width)
        given = {"position": rows.position_N.astype(np.int32), "token_id": rows.token_N,
                 "rollout_log_prob": rows.per_token("rollout_log_probs"),
                 "sampling_log_prob": rows.per_token("sampling_log_probs")}
        scored = [field for field in self.schema
                  if field.name not in given and field.name not in FROM_ROLLOUTS + MARKED]
        self.arrays = given | {field.name: empty_column(field.type, len(rows)) for field in scored}
        self.scored = frozenset(field.name for field in scored)
        self.reused_from_M: list[str | None] = [None] * len(rows.rollouts)
        """Manifest ids, by rollout."""
        self.filled = 0
        """Rows that were put."""

    def put(self, row_R: np.ndarray, statistics: Mapping[str, np.ndarray]) -> None:
        """Store what is known of some rows."""
        assert statistics.keys() == self.scored, statistics.keys() ^ self.scored
        for name, values in statistics.items():
            self.arrays[name][row_R] = values
        self.filled += len(row_R)

    def table(self) -> pa.Table:
        """The rows as a table with the schema of `tokens`. Every row was put once."""
        assert self.filled == len(self.rows), (self.filled, len(self.rows))
        columns = [self._column(field) for field in self.schema]
        return pa.Table.from_arrays(columns, schema=self.schema)

    def _column(self, field: pa.Field):
        if field.name in FROM_ROLLOUTS:
            return self.rows.per_rollout(field.name)
        if field.name in MARKED:
            return pa.array(self.reused_from_M, field.type).take(pa.array(self.rows.rollout_N))
        array = self.arrays[field.name]
        if array.ndim == 1:
            return pa.array(array, field.type)
        return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), type=field.type)


def empty_column(kind: pa.DataType, rows: int) -> np.ndarray:
    """An array for a column of numbers or of fixed-size lists of them."""
    if pa.types.is_fixed_size_list(kind):
        return np.empty((rows, kind.list_size), dtype=kind.value_type.to_pandas_dtype())
    return np.empty(rows, dtype=kind.to_pandas_dtype())
