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

No connection outlives its process, nothing is written: the catalog is views, rebuilt in milliseconds. (The same views
in a file that any DuckDB client opens are catalog_file.py.)
"""

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
from storage.scratch import remove_own, scratch_folder
from storage.small_relations import SMALL
from storage.snapshot import Snapshot

VIEWS = ("rollouts", "tokens", "masked_tokens", "topk", "steps", "trainings", "continuations", "evaluations",
         "accuracy", "shards", "timings", "vocabulary", "rounds", "task_metrics", "position_metrics")
"""In the order in which they are created: `rounds` reads others."""

_WILDCARDS = re.compile(r"[*?\[\]]")
_RAISED_IN_STORAGE = re.compile(r"^(?:storage\.errors\.)?(?:IntegrityError|MissingObject): (?P<line>.*)", re.MULTILINE)
"""How DuckDB reports what storefiles.py raised: as the text of a traceback."""


def connect(store: ObjectStore, snapshot: Snapshot, *, locked: bool = True, verified: bool = False,
            threads: int | None = None, views: Sequence[str] = VIEWS):
    """A DuckDB connection with all macros and `views`, all unless told, over the snapshot's files.

    `verified` checks the sha256 of every file that is opened. `threads` = 1 makes float sums and the order of rows
    the same every time.
    """
    connection = open_connection(threads)
    direct = _directly_readable(store, verified)
    paths = local_paths(snapshot) if direct else _registered_paths(connection, snapshot)
    for name, (schema, compute) in SMALL.items():
        _register(connection, name, schema, lambda compute=compute: compute(snapshot))
    create_views(connection, views)
    fill_from_files(connection, snapshot, paths)
    if locked:
        lock(connection, sorted(paths.values()))
    return connection


def connect_empty():
    """A locked connection whose views have their columns and types and no rows: it needs no store."""
    connection = open_connection(threads=1)
    for name, (schema, _) in SMALL.items():
        _register(connection, name, schema, schema.empty_table)
    create_views(connection, VIEWS)
    lock(connection, [])
    return connection


def connect_tables(tables: Mapping[str, pa.Table], *, run: str = "run", number: int = 0, locked: bool = True):
    """A connection whose views hold these Arrow tables (`tokens`, `rollouts`, ...) as round `number`."""
    connection = open_connection(threads=1)
    create_views(connection, ("rollouts", "tokens", "masked_tokens", "topk", "steps", "evaluations", "accuracy"))
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
        raise told(error, "SQL") from None


def told(error: Exception, what: str) -> IntegrityError | UserError:
    """DuckDB's error as one line: an IntegrityError if storefiles.py raised it, else the user's, of `what`."""
    raised = _RAISED_IN_STORAGE.search(str(error))
    return IntegrityError(raised["line"]) if raised else UserError(f"{what}: {one_line(error)}")


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

    return [address(file) for file in files(snapshot)]


def files(snapshot: Snapshot) -> list[ShardFile]:
    """Every shard of every table that SQL knows."""
    return [file for run, number, _ in snapshot.rounds() for table in relations.TABLES
            for file in snapshot.files(run, number, table)]


def create_views(connection, views: Sequence[str]) -> None:
    """Macros and views, over relations that are still empty: making a view binds all it reads, down to the files."""
    for table in relations.TABLES:
        connection.execute(relations.relation(table))
    for kind, names in (("macros", sqlfiles.names("macros")), ("views", views)):
        for name in names:
            connection.execute(sqlfiles.load(kind, name).text)


def fill_from_files(connection, snapshot: Snapshot, paths: Mapping[str, str]) -> None:
    """Give the relations of `create_views` the snapshot's files. `paths` maps keys to what DuckDB opens."""
    for table in relations.TABLES:
        arms = relations.file_arms(snapshot, table, paths)
        if arms:
            connection.execute(relations.relation(table, arms))


def local_paths(snapshot: Snapshot) -> dict[str, str]:
    """Key -> the file itself. `local_path` refuses symbolic links, which would lead out of the store."""
    return {file.key: str(snapshot.store.local_path(file.key)) for file in files(snapshot)}


def _directly_readable(store: ObjectStore, verified: bool) -> bool:
    """DuckDB takes `*`, `?` and `[` in a path for wildcards: a store below such a folder goes the other way."""
    return isinstance(store, LocalStore) and not verified and not _WILDCARDS.search(str(store.root))


def _registered_paths(connection, snapshot: Snapshot) -> dict[str, str]:
    from storage.storefiles import StoreFiles, address

    connection.register_filesystem(StoreFiles(snapshot.store, files(snapshot)))
    return {file.key: address(file) for file in files(snapshot)}


class _Lazy:
    """An Arrow stream that is computed when a query reads it, not when the view is made."""

    def __init__(self, schema: pa.Schema, compute: Callable[[], pa.Table]):
        self._schema, self._compute = schema, compute

    def __arrow_c_schema__(self):
        return self._schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema=None):
        return self._compute().cast(self._schema).__arrow_c_stream__(requested_schema)


def _register(connection, name: str, schema: pa.Schema, compute: Callable[[], pa.Table]) -> None:
    connection.register(f"raw_{name}", _Lazy(schema, compute))
    connection.execute(f"CREATE VIEW raw.{name} AS SELECT * FROM raw_{name}")
