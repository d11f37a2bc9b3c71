"""Columns of `tokens` that a vLLM teacher does not know: null in the table, a stand-in for what never reads them.

In a fixed-size list single entries may be null.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage import schemas

STAND_IN = float(np.float32(np.log(1e-4)))
"""For an unknown log-prob where numbers must be: the most that an unknown tail can be. Objectives that would read it
are refused (pipeline/config/partial.py); renormalised ones cancel it."""


def as_null(scores: pa.Table) -> pa.Table:
    """The same rows under the schema of a partial teacher, with NaN as null in the columns it may not know."""
    width = schemas.TopK(scores["teacher_topk_ids"].type.list_size, scores["student_topk_ids"].type.list_size,
                         "student_log_probs_at_teacher_topk" in scores.column_names, partial_teacher=True)
    schema = schemas.tokens(width)
    columns = [_nulled(scores[field.name], field) if field.name in schemas.UNKNOWN_TO_VLLM
               else scores[field.name].combine_chunks() for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def stand_in(tokens: pa.Table) -> pa.Table:
    """The same with STAND_IN for every null of these columns; tables without any stay as they are."""
    for name in schemas.UNKNOWN_TO_VLLM:
        if name in tokens.column_names and _may_lack(tokens.schema.field(name)):
            index = tokens.schema.get_field_index(name)
            filled = _filled(tokens[name].combine_chunks())
            tokens = tokens.set_column(index, pa.field(name, filled.type, nullable=False), filled)
    return tokens


def known(column: pa.ChunkedArray) -> np.ndarray:
    """The values as float64 or as they are, [N] or [N, K], NaN where null."""
    array = column.combine_chunks()
    if not pa.types.is_fixed_size_list(array.type):
        return array.to_numpy(zero_copy_only=False)
    return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, array.type.list_size)


def _may_lack(field: pa.Field) -> bool:
    return field.nullable or pa.types.is_fixed_size_list(field.type) and field.type.value_field.nullable


def _nulled(column: pa.ChunkedArray, field: pa.Field) -> pa.Array:
    array = column.combine_chunks()
    if not pa.types.is_fixed_size_list(field.type):
        return _nan_as_null(array)
    return pa.FixedSizeListArray.from_arrays(_nan_as_null(array.flatten()), type=field.type)


def _nan_as_null(values: pa.Array) -> pa.Array:
    return pa.array(values.to_numpy(zero_copy_only=False), values.type, from_pandas=True)


def _filled(array: pa.Array) -> pa.Array:
    if not pa.types.is_fixed_size_list(array.type):
        return pc.fill_null(array, STAND_IN)
    kind = pa.list_(pa.field("item", array.type.value_type, nullable=False), array.type.list_size)
    return pa.FixedSizeListArray.from_arrays(pc.fill_null(array.flatten(), STAND_IN), type=kind)
