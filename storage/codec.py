"""Arrow tables to Parquet bytes and back: the only module that knows how a shard is coded.

Promises:
- `encode` is a function of the table's rows, schema and units alone: not of its chunks, its history or the clock.
  The bytes do depend on pyarrow's version, which Parquet records as `created_by`.
- Every page carries a CRC and `decode` checks it. CRCs cover neither page headers nor the footer, and of 3,000 bit
  flips in a footer one came through as other rows; the sha256 of the whole file, which its receipt holds, finds all.
  A reader of a store needs both.
- `decode` checks the schema exactly: names, order, types, nullability. Extension types are refused.
- The file is plain Parquet: DuckDB 2 reads every column as an ordinary value or list.

Coding, measured by benchmarks/cache_encodings.py (bytes per token, K = 32, flat rows):
- Token ids and floats: BYTE_STREAM_SPLIT. 32 ids 59 (dictionary 70, plain 71; their order-0 entropy is 56), an exact
  scalar 3.0 (plain 3.4), the rank 0.5 (dictionary 0.6).
- zstd 1 everywhere but on lists of log-probs in descending order, whose high bytes repeat as runs: zstd 6 finds them,
  23 instead of 30, for three times the writing and the same reading time. Level 12 would save 0.3 more.
- Hidden states: plain bytes. zstd 1 takes bfloat16 to .79 of its size and float8 to .85 (random numbers of differing
  spread by dimension; BYTE_STREAM_SPLIT the same to 1 %), no least and greatest value.
- Data pages v1, because v2 leaves the levels of lists uncompressed: 4 bytes per list of 32.
- Pages of up to 4 MiB and a whole row group of rows: a byte stream of a scalar then fills one zstd block of 128 KiB
  and gets a Huffman table of its own (3.0 instead of 3.3 with pyarrow's 20,000 rows), and runs reach further back
  (23 instead of 24 with 1 MiB).

Arrays: N rows, K entries of a fixed-size list.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import IntegrityError
from storage.grid import snap

__all__ = ["ROW_GROUP_ROWS", "columns_to_torch", "decode", "encode", "fixed_bytes_to_numpy", "fixed_lists_to_numpy",
           "snap"]

ROW_GROUP_ROWS = 131_072
"""128 Ki: see the module's docstring, and DuckDB's own vectors divide it."""
_PAGE_BYTES = 4 << 20
_REPEATING = {"rollout_id", "prompt_id", "weight"}
"""Numbers that repeat from row to row, or have a handful of values: dictionary."""
_NOISY = {"token_id", "teacher_rank"}
"""Whole numbers whose neighbours say nothing about them, so that differences do not help: BYTE_STREAM_SPLIT."""
_FREE_TEXT = {"messages", "ground_truth", "solution", "response_text", "token_hash", "answer"}
"""Strings that differ from row to row: no dictionary. All other strings are names."""
_ITEM = ".list.element"


def encode(table: pa.Table) -> bytes:
    """Return `table` as a Parquet file; equal tables give equal bytes. Nulls in a required column raise ValueError."""
    schema = _plain_schema(table.schema)
    table = table.cast(schema).combine_chunks()
    leaves = dict(_leaves(schema))
    encodings = {path: _encoding(path, kind) for path, kind in leaves.items()}
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, schema, version="2.6", data_page_version="1.0", store_schema=True, write_page_checksum=True,
        compression="zstd", compression_level={path: _zstd_level(path) for path in encodings},
        use_dictionary=[path for path, encoding in encodings.items() if encoding == "DICTIONARY"],
        column_encoding={path: encoding for path, encoding in encodings.items() if encoding != "DICTIONARY"},
        write_statistics=[path for path, kind in leaves.items() if _ordered(path, kind)],
        data_page_size=_PAGE_BYTES, max_rows_per_page=ROW_GROUP_ROWS,
    ) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    return sink.getvalue().to_pybytes()


def decode(data: bytes | Path, schema: pa.Schema | None, columns: Iterable[str] | None = None, *,
           use_threads: bool = True) -> pa.Table:
    """Read `columns`, in their order, of a Parquet file whose schema is exactly `schema`.

    None means all columns, and a schema that may be anything without extension types. Raises IntegrityError for bytes
    that are not such a file; an OSError of the disk itself stays one.
    """
    name = str(data) if isinstance(data, Path) else "the Parquet file"
    source = pa.OSFile(str(data)) if isinstance(data, Path) else pa.BufferReader(data)
    try:
        with source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            found = file.schema_arrow
            _refuse_extensions(found, name)
            if schema is not None:
                _check_schema(found, schema, name)
            names = found.names if columns is None else list(columns)
            _check_columns(names, found.names)
            return file.read(names, use_threads=use_threads).select(names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if getattr(error, "errno", None) is not None:  # the disk's; Parquet's own OSErrors carry no number
            raise
        reason = " ".join(str(error).split())
        raise IntegrityError(f"{name} is damaged or no Parquet file ({reason}): run `opd verify`") from error


def fixed_lists_to_numpy(column: pa.ChunkedArray):
    """View a column of fixed-size lists as an array [N, K], read-only; copies only where it has several chunks."""
    return _flat(column).to_numpy(zero_copy_only=True).reshape(-1, column.type.list_size)


def fixed_bytes_to_numpy(column: pa.ChunkedArray):
    """View a column of fixed-size binary values as bytes [N, B], read-only; copies only where it has several chunks."""
    import numpy as np

    array, width = _flat(column), column.type.byte_width
    values = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    return values[array.offset * width:(array.offset + len(array)) * width].reshape(-1, width)


def columns_to_torch(table: pa.Table, columns: Iterable[str] | None = None) -> dict:
    """View numeric columns as tensors [N] and fixed-size lists as [N, K], by name; no Python object per row.

    The tensors share the table's memory: whoever writes into one clones it first. Nulls raise ValueError.
    """
    import torch

    tensors = {}
    for name in table.column_names if columns is None else columns:
        column = table.column(name)
        flat = torch.from_dlpack(_flat(column))  # from_numpy would warn that Arrow's memory is read-only
        tensors[name] = flat.view(-1, column.type.list_size) if pa.types.is_fixed_size_list(column.type) else flat
    return tensors


def _flat(column: pa.ChunkedArray) -> pa.Array:
    if column.null_count:
        raise ValueError(f"a column of {column.type} has {column.null_count} nulls: fill or filter them first")
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies even one chunk
    return array.flatten() if pa.types.is_fixed_size_list(column.type) else array


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    """Keep units as the only metadata."""
    _refuse_extensions(schema, "the table")
    return pa.schema([pa.field(field.name, _plain_type(field.type), field.nullable, _unit(field)) for field in schema])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Name list items as Parquet does: a table that was read and one that was built then give the same bytes."""
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        element = pa.field("element", _plain_type(kind.value_type), kind.value_field.nullable)
        return pa.list_(element, kind.list_size) if pa.types.is_fixed_size_list(kind) else pa.list_(element)
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain_type(field.type), field.nullable) for field in kind])
    return kind


def _unit(field: pa.Field) -> dict | None:
    unit = (field.metadata or {}).get(b"unit")
    return None if unit is None else {b"unit": unit}


def _leaves(schema: pa.Schema) -> Iterator[tuple[str, pa.DataType]]:
    """Yield every Parquet leaf column as its path and type."""
    def walk(path: str, kind: pa.DataType):
        if pa.types.is_struct(kind):
            for field in kind:
                yield from walk(f"{path}.{field.name}", field.type)
        elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            yield from walk(path + _ITEM, kind.value_type)
        else:
            yield path, kind

    for field in schema:
        yield from walk(field.name, field.type)


def _encoding(path: str, kind: pa.DataType) -> str:
    if path in _REPEATING:
        return "DICTIONARY"
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) and (path.endswith(_ITEM) or path in _NOISY):
        return "BYTE_STREAM_SPLIT"
    if pa.types.is_integer(kind):
        return "DELTA_BINARY_PACKED"
    never_twice = path in _FREE_TEXT or pa.types.is_boolean(kind) or pa.types.is_fixed_size_binary(kind)
    return "PLAIN" if never_twice else "DICTIONARY"


def _ordered(path: str, kind: pa.DataType) -> bool:
    """Whether a least and a greatest value say anything about a column."""
    return not path.endswith(_ITEM) and not pa.types.is_fixed_size_binary(kind)


def _zstd_level(path: str) -> int:
    descending = path.endswith("_topk_log_probs" + _ITEM)
    return 6 if descending else 1


def _check_schema(found: pa.Schema, expected: pa.Schema, name: str) -> None:
    unknown = [column for column in found.names if column not in expected.names]
    missing = [column for column in expected.names if column not in found.names]
    if unknown or missing:
        raise IntegrityError(f"{name} has not the columns of its table: unknown {unknown}, missing {missing}")
    if found.names != expected.names:
        raise IntegrityError(f"{name} has its columns in another order: {found.names} instead of {expected.names}")
    for field, wanted in zip(found, expected):
        if not field.equals(wanted):
            raise IntegrityError(f"{name}: column {field.name} is {_kind(field)}, expected {_kind(wanted)}")


def _check_columns(asked: list[str], held: list[str]) -> None:
    unknown = [column for column in asked if column not in held]
    if unknown:
        raise ValueError(f"no columns {unknown}, the table has {held}")


def _kind(field: pa.Field) -> str:
    return f"{field.type}{'' if field.nullable else ' not null'}"


def _refuse_extensions(schema: pa.Schema, name: str) -> None:
    def walk(field: pa.Field, column: str):
        marked = b"ARROW:extension:name" in (field.metadata or {})
        if marked or isinstance(field.type, pa.BaseExtensionType):
            raise IntegrityError(f"{name}: column {column} has an extension type; only plain types are read")
        for index in range(field.type.num_fields):
            walk(field.type.field(index), column)

    for field in schema:
        walk(field, field.name)
