"""Shard files: writing under a content name, and reading only bytes that are the committed ones.

Size and sha256 are checked once per process and file (a file that changes on disk is checked again); the pages'
checksums and the exact schema are checked at every read.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage import codec, documents, layout, schemas
from storage.errors import IntegrityError
from storage.objects import ObjectStore
from storage.records import ShardFile

_checked: set[tuple] = set()


def put_shard(store: ObjectStore, run: str, number: int, table_name: str, index: int, table: pa.Table,
              scores: str | None = None) -> ShardFile:
    """Encode and put one shard. Nothing counts it until a receipt names it."""
    check_schema(table.schema, table_name, f"shard {index} of {table_name}")
    data = codec.encode(table)
    sha256 = documents.sha256(data)
    key = layout.shard(run, number, table_name, index, sha256, scores)
    if not store.put_if_absent(key, data):
        checked_path(store, key, len(data), sha256)
    return ShardFile(key, table_name, table.num_rows, len(data), sha256)


def read_shard(store: ObjectStore, file: ShardFile, columns: Iterable[str] | None = None) -> pa.Table:
    """The rows of a shard. Raises IntegrityError, naming the file, for anything but the committed bytes."""
    path = checked_path(store, file.key, file.size, file.sha256)
    return codec.decode(path, check_table(path, file), columns)


def check_table(path: Path, file: ShardFile) -> pa.Schema:
    """Check a file's footer: exactly its table's columns, as many rows as committed. Returns the schema."""
    try:
        metadata = pq.read_metadata(path)
        found, metadata_rows = metadata.schema.to_arrow_schema(), metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"{file.key} is not a Parquet file: something else lies in its place",
                             "unparseable") from error
    check_schema(found, file.table, file.key)
    if metadata_rows != file.rows:
        raise IntegrityError(f"{file.key} has {metadata_rows} rows, its receipt says {file.rows}: another shard lies "
                             "in its place", "foreign")
    return expected_schema(file.table, found)


def expected_schema(table_name: str, found: pa.Schema) -> pa.Schema:
    """The schema of a table; the widths of `tokens` and `hidden` are those that `found` has."""
    if table_name == "hidden":
        return schemas.hidden(_bytes(found, "hidden"))
    if table_name != "tokens":
        return schemas.FIXED_TABLES[table_name]
    return schemas.tokens(schemas.TopK(_width(found, "teacher_topk_ids"), _width(found, "student_topk_ids"),
                                       "student_log_probs_at_teacher_topk" in found.names,
                                       _nullable(found, "teacher_entropy")))


def check_schema(found: pa.Schema, table_name: str, what: str) -> None:
    """Raise IntegrityError unless `found` has exactly the columns of `table_name`, in order."""
    expected = expected_schema(table_name, found)
    if found.names != expected.names:
        odd = sorted(set(found.names) ^ set(expected.names)) or found.names
        raise IntegrityError(f"{what} is not a {table_name!r} table: it differs in the columns {', '.join(odd[:5])}",
                             "foreign")
    for mine, theirs in zip(found, expected):
        if mine.type != theirs.type:
            raise IntegrityError(f"{what} is not a {table_name!r} table: column {mine.name} is {mine.type}, "
                                 f"expected {theirs.type}", "foreign")


def checked_path(store: ObjectStore, key: str, size: int, sha256: str) -> Path:
    """A local file with exactly the committed bytes. Raises MissingObject or IntegrityError."""
    path = store.local_path(key)
    stat = os.stat(path)
    mark = (store.url, key, sha256, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if mark not in _checked:
        problem = damage(path, size, sha256)
        if problem:
            raise IntegrityError(f"{key} {problem[1]}: run `opd verify`", problem[0])
        _checked.add(mark)
    return path


def damage(path: Path, size: int, sha256: str) -> tuple[str, str] | None:
    """(kind, words) for what is wrong with a file's bytes, or None."""
    found = path.stat().st_size
    if found == 0 and size:
        return "empty", f"is empty, {size} bytes were committed"
    if found < size:
        return "truncated", f"is truncated: {found} of {size} bytes"
    if found > size:
        return "longer", f"is {found} bytes long, {size} were committed"
    if file_sha256(path) != sha256:
        return "changed", f"was changed: {size} bytes as committed, but their sha256 differs"
    return None


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes(schema: pa.Schema, column: str) -> int:
    index = schema.get_field_index(column)
    kind = schema.field(index).type if index >= 0 else None
    return kind.byte_width if kind is not None and pa.types.is_fixed_size_binary(kind) else 1


def _nullable(schema: pa.Schema, column: str) -> bool:
    index = schema.get_field_index(column)
    return index >= 0 and schema.field(index).nullable


def _width(schema: pa.Schema, column: str) -> int:
    index = schema.get_field_index(column)
    kind = schema.field(index).type if index >= 0 else None
    return kind.list_size if kind is not None and pa.types.is_fixed_size_list(kind) else 1
