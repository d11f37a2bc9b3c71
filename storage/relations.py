"""The relations `raw.*` below the views: arms of a UNION ALL BY NAME over explicit files, or over Arrow tables.

Files hold no run and no round column. All files of a run's table form one arm: `run` is a constant, `round` is a
function of the file's name that DuckDB evaluates per file while it plans, so that a filter on run or round leaves
out every other file before one is opened. (An arm per round does the same and costs 2 ms of planning each: 4 s for
2,000 rounds. One arm takes .02 s.) A branch has its own arms over the files that it shares with its parent: a round
keeps its number in a branch, so the name is right for both.

The first arm of every relation has no rows and all columns: a relation of an empty store is empty, not missing.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from storage import schemas
from storage.snapshot import Snapshot

TABLES = {**schemas.FIXED_TABLES, "tokens": schemas.tokens(schemas.TopK(1, 1, student_at_teacher=True)),
          "hidden": schemas.hidden(1)}
"""Table -> all columns it may have. Widths of lists and bytes do not matter: in SQL they are lists and blobs."""

_PLACE = re.compile(r"run=[^/]+/round=(?P<round>[0-9]+)/(?P<folder>.+)/part-(?P<shard>[0-9]+)-[0-9a-f]+\.parquet")
_SQL_TYPES = {pa.int32(): "INTEGER", pa.int64(): "BIGINT", pa.float32(): "FLOAT", pa.float64(): "DOUBLE",
              pa.string(): "VARCHAR", pa.bool_(): "BOOLEAN"}


@dataclass(frozen=True)
class Place:
    """What a shard's key says: the round that wrote it, its table's folder, its index."""

    round: int
    folder: str
    shard: int


def place(key: str) -> Place:
    """Read a shard's key."""
    match = _PLACE.fullmatch(key)
    assert match, key
    return Place(int(match["round"]), match["folder"], int(match["shard"]))


def sql_type(kind: pa.DataType) -> str:
    """DuckDB's name of an Arrow type; fixed-size lists are lists."""
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return f"{sql_type(kind.value_type)}[]"
    if pa.types.is_struct(kind):
        return f"STRUCT({', '.join(f'{quoted_name(field.name)} {sql_type(field.type)}' for field in kind)})"
    return "BLOB" if pa.types.is_fixed_size_binary(kind) else _SQL_TYPES[kind]


def quoted_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def quoted_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def relation(name: str, arms: Iterable[str] = ()) -> str:
    """CREATE VIEW raw.<name>: an arm without rows that has all columns, then `arms`."""
    columns = [("run", "VARCHAR"), ("round", "INTEGER")]
    columns += [(field.name, sql_type(field.type)) for field in TABLES[name]]
    empty = ", ".join(f"CAST(NULL AS {kind}) AS {quoted_name(column)}" for column, kind in columns)
    all_arms = "\nUNION ALL BY NAME\n".join([f"SELECT {empty} WHERE false", *arms])
    return f"CREATE OR REPLACE VIEW raw.{name} AS\n{all_arms}"


def table_arm(registered: str, schema: pa.Schema, run: str, number: int) -> str:
    """An arm over a registered Arrow table of one round."""
    columns = ", ".join(f"CAST({quoted_name(field.name)} AS {sql_type(field.type)}) AS {quoted_name(field.name)}"
                        for field in schema)
    return (f"SELECT {quoted_text(run)} AS run, CAST({number} AS INTEGER) AS round, {columns} "
            f"FROM {quoted_name(registered)}")


def file_arms(snapshot: Snapshot, table: str, paths: Mapping[str, str]) -> list[str]:
    """Arms over the snapshot's files of a table. `paths` maps keys to what DuckDB opens."""
    groups: dict[tuple[str, str], list[str]] = {}
    for run, number, _ in snapshot.rounds():
        for file in snapshot.files(run, number, table):
            at = place(file.key)
            assert at.round == number, file.key
            groups.setdefault((run, at.folder), []).append(paths[file.key])
    return [_file_arm(run, folder, group) for (run, folder), group in sorted(groups.items())]


def _file_arm(run: str, folder: str, paths: list[str]) -> str:
    files = ", ".join(quoted_text(path) for path in paths)
    from_the_end = 3 + folder.count("/")
    number = f"CAST(substr(string_split(filename, '/')[-{from_the_end}], {1 + len('round=')}) AS INTEGER)"
    return (f"SELECT {quoted_text(run)} AS run, {number} AS round, * EXCLUDE (filename)\n"
            f"FROM read_parquet([{files}], filename = true, hive_partitioning = false)")
