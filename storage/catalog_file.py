"""The catalog as a DuckDB file: the views of catalog.py for every DuckDB client, without this package.

    write_catalog(store, take_snapshot(store), Path("opd.duckdb"))

    $ duckdb -readonly opd.duckdb "FROM gap_by_position"

What is in it:
- the views and macros of sql/views and sql/macros, over `read_parquet` of the snapshot's files by their full paths,
  and what the views read of the store besides (`raw.rounds`, `raw.shards`, `raw.timings`, `raw.vocabulary`) as tables.
- the saved reports of sql/reports that take no values, as views too.
- every header as a comment: DESCRIBE's companions duckdb_views(), duckdb_columns() and most clients show them.
- `opd_catalog`: which rounds it was made from. It has no time: a committed round is known by its manifest id and one
  in progress by its count of shards, and the file's own date says when it was written.

No token is copied, so the file has some hundred KB and is rebuilt rather than updated. It goes stale: rounds that are
committed later are not in it, and a store that moves leaves it pointing at nothing, which DuckDB says in one line.
It is written in the oldest storage version that DuckDB knows, with SQL that DuckDB 1.2 and later run. What older
clients cannot do is decode integers in BYTE_STREAM_SPLIT: DuckDB 1.x refuses columns of token ids and ranks.
On an object store the paths are s3:// urls: the client brings the access to them (`INSTALL httpfs; CREATE SECRET`).
"""

import importlib.metadata
import re
from pathlib import Path

import pyarrow as pa

from storage import catalog, relations, sqlfiles
from storage.errors import UserError
from storage.newfile import check_target, new_file
from storage.objects import LocalStore, ObjectStore
from storage.relations import quoted_name, quoted_text
from storage.small_relations import SMALL
from storage.snapshot import Snapshot
from storage.sqlfiles import SqlFile

_OPTIONS = "STORAGE_VERSION 'v0.10.2', BLOCK_SIZE 16384"
"""The smallest block that DuckDB knows: the file of a run with few rounds has .3 MB instead of 1.5."""
_ABOUT = pa.schema([("store", pa.string()), ("opd_version", pa.string()), ("run", pa.string()), ("round", pa.int32()),
                    ("committed", pa.bool_()), ("manifest_id", pa.string()), ("shards", pa.int32())])
_WILDCARDS = re.compile(r"[*?\[]")


def write_catalog(store: ObjectStore, snapshot: Snapshot, file: Path, *, force: bool = False) -> None:
    """Write `file`, whole or not at all. Raises UserError for a file that exists (without `force`) or cannot be."""
    _check_name(check_target(file, store, force=force))
    with new_file(file, force=force) as temp, catalog.open_connection(threads=1) as connection:
        import duckdb

        try:
            connection.execute(f"ATTACH {quoted_text(str(temp))} AS made ({_OPTIONS})")
            connection.execute("USE made")
            _fill(connection, store, snapshot)
            connection.execute("USE memory")
            connection.execute("DETACH made")
        except duckdb.Error as error:
            raise catalog.told(error, f"{file} cannot be written") from None


def _fill(connection, store: ObjectStore, snapshot: Snapshot) -> None:
    _put_tables(connection, store, snapshot)
    catalog.create_views(connection, catalog.VIEWS)
    _put_reports(connection)
    _put_comments(connection)
    catalog.fill_from_files(connection, snapshot, _paths(connection, store, snapshot))


def about(store: ObjectStore, snapshot: Snapshot) -> pa.Table:
    """`opd_catalog`: a row per round; a run without rounds, and a store without runs, has one with nulls."""
    try:
        version = importlib.metadata.version("opd-rounds")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        version = None
    rows = [{"run": run, "round": number, "committed": committed,
             "manifest_id": getattr(snapshot.manifest(run, number), "id", None),
             "shards": sum(len(snapshot.files(run, number, table)) for table in relations.TABLES)}
            for run, number, committed in snapshot.rounds()]
    rows += [{"run": run} for run in sorted(set(snapshot.documents) - {row["run"] for row in rows})]
    return pa.Table.from_pylist([{**row, "store": store.url, "opd_version": version} for row in rows or [{}]], _ABOUT)


def _check_name(file: Path) -> None:
    """DuckDB names a database after its file, and cannot tell a database `raw` from the schema `raw` inside it."""
    name = file.name.split(".")[0]
    if name.lower() == "raw":
        raise UserError(f"{file}: a database {name} could not be told from the schema raw in it; name another file")
    if Path(f"{file}.wal").exists():
        raise UserError(f"{file}.wal lies there, left by a program that wrote into an older {file.name}: DuckDB would "
                        "apply it to the new one; remove it, or name another file")


def _put_tables(connection, store: ObjectStore, snapshot: Snapshot) -> None:
    connection.execute("CREATE SCHEMA raw")
    tables = {f"raw.{name}": compute(snapshot).cast(schema) for name, (schema, compute) in SMALL.items()}
    for name, table in {**tables, "opd_catalog": about(store, snapshot)}.items():
        connection.register("given", table)
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM given")
        connection.unregister("given")


def _put_reports(connection) -> None:
    for report in _reports():
        connection.execute(f"CREATE VIEW {quoted_name(report.name)} AS\n{report.text}")


def _put_comments(connection) -> None:
    """While the relations are still empty: each comment binds its view, down to the files.

    In one transaction: 500 of them, each synced to the disk, take seconds.
    """
    connection.execute("BEGIN")
    for file in [*_files("views"), *_reports()]:
        view = quoted_name(file.name)
        connection.execute(f"COMMENT ON VIEW {view} IS {quoted_text(f'{file.description} Grain: {file.grain}')}")
        for column, meaning in file.columns.items():
            connection.execute(f"COMMENT ON COLUMN {view}.{quoted_name(column)} IS {quoted_text(meaning)}")
    for file in _files("macros"):
        kind = "MACRO TABLE" if " AS TABLE\n" in file.text else "MACRO"
        connection.execute(f"COMMENT ON {kind} {quoted_name(file.name)} IS {quoted_text(file.description)}")
    connection.execute("COMMIT")


def _files(kind: str) -> list[SqlFile]:
    return [sqlfiles.load(kind, name) for name in sqlfiles.names(kind)]


def _reports() -> list[SqlFile]:
    """Those that a view can be: without values."""
    return [report for report in _files("reports") if not report.parameters]


def _paths(connection, store: ObjectStore, snapshot: Snapshot) -> dict[str, str]:
    """Key -> what every client opens. DuckDB takes `*`, `?` and `[` for wildcards, unless they stand in brackets."""
    if isinstance(store, LocalStore):
        return {key: _WILDCARDS.sub(r"[\g<0>]", path) for key, path in catalog.local_paths(snapshot).items()}
    from storage.storefiles import StoreFiles, address

    base = f"{store.url}/"
    files = catalog.files(snapshot)
    connection.register_filesystem(StoreFiles(store, files, base))  # to bind the views; clients have their own
    return {file.key: address(file, base) for file in files}
