"""The catalog: a store's tables in DuckDB, as the views of sql/views and the macros of sql/macros.

    connection = connect(store, take_snapshot(store))
    query(connection, "SELECT round, avg(gap) FROM tokens GROUP BY round")

Promises:
- what a query sees is the snapshot, however the store goes on. A query for one round opens that round's files.
- a locked connection reads the snapshot's shards and nothing else of the machine, and its settings cannot be
  changed. `query` runs single SELECTs only (guard.py says why both are needed); values are bound.
- local shards are read by DuckDB itself, at the speed of a Parquet scan and without their hashes being checked
  (`opd verify` does that). With `verified`, and always on an object store, they are read through storefiles.py,
  which checks size and sha256 of every file that is opened.

No connection outlives its process, nothing is written: the catalog is views, rebuilt in milliseconds.
"""

import json
import os
import re
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage import relations, sqlfiles
from storage.errors import IntegrityError, UserError
from storage.guard import check_reads_only, one_line
from storage.objects import LocalStore, ObjectStore
from storage.records import ShardFile
from storage.rounds import Round
from storage.scratch import remove_own, scratch_folder
from storage.snapshot import Snapshot
from storage.vocabulary import SCHEMA as VOCABULARY
from storage.vocabulary import vocabulary

VIEWS = ("rollouts", "tokens", "masked_tokens", "topk", "steps", "evaluations", "shards", "timings", "vocabulary",
         "rounds")
"""In the order in which they are created: `rounds` reads others."""

_STAGE_OF_TABLE = {"prompts": "prompts", "rollouts": "rollout", "tokens": "score", "mask": "mask", "steps": "train"}
_ROUNDS = pa.schema([("run", pa.string()), ("round", pa.int32()), ("committed", pa.bool_()),
                     ("manifest_id", pa.string())])
_SHARDS = pa.schema([("run", pa.string()), ("round", pa.int32()), ("stage", pa.string()), ("shard", pa.int32()),
                     ("table_name", pa.string()), ("key", pa.string()), ("rows", pa.int64()),
                     ("size_bytes", pa.int64()), ("sha256", pa.string()), ("committed", pa.bool_())])
_TIMINGS = pa.schema([("run", pa.string()), ("round", pa.int32()), ("stage", pa.string()), ("shard", pa.int32()),
                      ("seconds", pa.float64()), ("rows", pa.int64()), ("host", pa.string()),
                      ("details", pa.string())])
_WILDCARDS = re.compile(r"[*?\[\]]")
_RAISED_IN_STORAGE = re.compile(r"^(?:storage\.errors\.)?(?:IntegrityError|MissingObject): (?P<line>.*)", re.MULTILINE)
"""How DuckDB reports what storefiles.py raised: as the text of a traceback."""


def connect(store: ObjectStore, snapshot: Snapshot, *, locked: bool = True, verified: bool = False,
            threads: int | None = None):
    """A DuckDB connection with all views and macros over the snapshot's files.

    `verified` checks the sha256 of every file that is opened. `threads` = 1 makes float sums and the order of rows
    the same every time.
    """
    connection = open_connection(threads)
    direct = _directly_readable(store, verified)
    paths = _local_paths(snapshot) if direct else _registered_paths(connection, snapshot)
    _register_small(connection, snapshot)
    _create_views(connection, VIEWS)
    for table in relations.TABLES:
        arms = relations.file_arms(snapshot, table, paths)
        if arms:
            connection.execute(relations.relation(table, arms))
    if locked:
        lock(connection, sorted(paths.values()))
    return connection


def connect_tables(tables: Mapping[str, pa.Table], *, run: str = "run", number: int = 0, locked: bool = True):
    """A connection whose views hold these Arrow tables (`tokens`, `rollouts`, ...) as round `number`."""
    connection = open_connection(threads=1)
    _create_views(connection, ("rollouts", "tokens", "masked_tokens", "topk", "steps", "evaluations"))
    for name, table in tables.items():
        connection.register(f"given_{name}", table)
        connection.execute(relations.relation(name, [relations.table_arm(f"given_{name}", table.schema, run, number)]))
    if locked:
        lock(connection, [])
    return connection


def query(connection, sql: str, parameters: Mapping[str, Any] | Sequence[Any] = ()) -> pa.Table:
    """Run one SELECT from a person, values bound. Raises UserError with one line; IntegrityError for a bad file."""
    check_reads_only(connection, sql)
    return run_select(connection, sql, parameters)


def run_select(connection, sql: str, parameters: Mapping[str, Any] | Sequence[Any] = ()) -> pa.Table:
    """The same for SQL that was checked, or is our own."""
    import duckdb

    try:
        return connection.sql(sql, params=parameters or None).to_arrow_table()
    except duckdb.Error as error:
        raised = _RAISED_IN_STORAGE.search(str(error))
        if raised:
            raise IntegrityError(raised["line"]) from None
        raise UserError(f"SQL: {one_line(error)}") from None


def open_connection(threads: int | None = None):
    """An empty in-memory database with the schema `raw`; the clock is UTC, no Python variable is a table.

    What does not fit into memory is spilled to a folder of its own, which goes when the connection does.
    """
    try:
        import duckdb
    except ImportError as error:
        raise UserError("SQL needs duckdb, which is not installed here: pip install 'duckdb>=2.0'") from error
    spill = Path(tempfile.mkdtemp(dir=scratch_folder("duckdb", os.getpid())))
    config: dict[str, Any] = {"python_enable_replacements": False, "autoinstall_known_extensions": False,
                              "temp_directory": str(spill)}
    if threads:
        config["threads"] = threads
    connection = duckdb.connect(":memory:", config=config)
    weakref.finalize(connection, remove_own, spill, os.getpid())
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("CREATE SCHEMA raw")
    return connection


def lock(connection, paths: Sequence[str]) -> None:
    """From now on only `paths` can be opened and no setting can be changed."""
    allowed = ", ".join(relations.quoted_text(path) for path in paths)
    connection.execute(f"SET allowed_paths = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def verified_paths(snapshot: Snapshot) -> list[str]:
    """What `lock` must allow on a connection with `verified`."""
    from storage.storefiles import address

    return [address(file) for file in _files(snapshot)]


def _files(snapshot: Snapshot) -> list[ShardFile]:
    return [file for run, number, _ in snapshot.rounds() for table in relations.TABLES
            for file in snapshot.files(run, number, table)]


def _directly_readable(store: ObjectStore, verified: bool) -> bool:
    """DuckDB takes `*`, `?` and `[` in a path for wildcards: a store below such a folder goes the other way."""
    return isinstance(store, LocalStore) and not verified and not _WILDCARDS.search(str(store.root))


def _create_views(connection, views: Sequence[str]) -> None:
    """Macros and views, over relations that are still empty: making a view binds all it reads, down to the files."""
    for table in relations.TABLES:
        connection.execute(relations.relation(table))
    for kind, names in (("macros", sqlfiles.names("macros")), ("views", views)):
        for name in names:
            connection.execute(sqlfiles.load(kind, name).text)


def _local_paths(snapshot: Snapshot) -> dict[str, str]:
    """Key -> the file itself. `local_path` refuses symbolic links, which would lead out of the store."""
    return {file.key: str(snapshot.store.local_path(file.key)) for file in _files(snapshot)}


def _registered_paths(connection, snapshot: Snapshot) -> dict[str, str]:
    from storage.storefiles import StoreFiles, address

    connection.register_filesystem(StoreFiles(snapshot.store, _files(snapshot)))
    return {file.key: address(file) for file in _files(snapshot)}


# --- small relations: from the snapshot itself, read when a query asks for them ---


class _Lazy:
    """An Arrow stream that is computed when a query reads it, not when the view is made."""

    def __init__(self, schema: pa.Schema, compute: Callable[[], pa.Table]):
        self._schema, self._compute = schema, compute

    def __arrow_c_schema__(self):
        return self._schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema=None):
        return self._compute().cast(self._schema).__arrow_c_stream__(requested_schema)


def _register_small(connection, snapshot: Snapshot) -> None:
    small = {"rounds": (_ROUNDS, _rounds), "shards": (_SHARDS, _shards), "timings": (_TIMINGS, _timings),
             "vocabulary": (VOCABULARY, vocabulary)}
    for name, (schema, compute) in small.items():
        connection.register(f"raw_{name}", _Lazy(schema, lambda compute=compute: compute(snapshot)))
        connection.execute(f"CREATE VIEW raw.{name} AS SELECT * FROM raw_{name}")


def _rounds(snapshot: Snapshot) -> pa.Table:
    manifests = [(run, number, snapshot.manifest(run, number)) for run, number, _ in snapshot.rounds()]
    return pa.Table.from_pylist(
        [{"run": run, "round": number, "committed": manifest is not None,
          "manifest_id": manifest.id if manifest else None} for run, number, manifest in manifests], _ROUNDS)


def _shards(snapshot: Snapshot) -> pa.Table:
    return pa.Table.from_pylist(
        [{"run": run, "round": number, "stage": _STAGE_OF_TABLE.get(file.table, file.table),
          "shard": relations.place(file.key).shard, "table_name": file.table, "key": file.key, "rows": file.rows,
          "size_bytes": file.size, "sha256": file.sha256, "committed": committed}
         for run, number, committed in snapshot.rounds() for table in relations.TABLES
         for file in snapshot.files(run, number, table)], _SHARDS)


def _timings(snapshot: Snapshot) -> pa.Table:
    rows = [{"run": run, "round": number, **timing} for run, number, _ in snapshot.rounds()
            for timing in Round(snapshot.store, run, number).timings()]
    known = set(_TIMINGS.names)
    return pa.Table.from_pylist(
        [{**row, "details": json.dumps({name: value for name, value in row.items() if name not in known},
                                       sort_keys=True)} for row in rows], _TIMINGS)
