"""`opd catalog FILE.duckdb`: the views as a file that any DuckDB client opens, without this package."""

import json
from pathlib import Path

from flows.commands.options import add_json, add_store, verb


def add(verbs) -> None:
    parser = verb(verbs, "catalog", run, "Write a DuckDB file of views over the store, for any DuckDB client.")
    parser.add_argument("file", type=Path, help="the file to write, as in opd.duckdb")
    parser.add_argument("--run", dest="run_id", help="only this run")
    parser.add_argument("--committed", action="store_true", help="only committed rounds")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    add_store(parser)
    add_json(parser)


def run(arguments) -> int:
    from storage.catalog import files
    from storage.catalog_file import write_catalog
    from storage.objects import open_store
    from storage.snapshot import take_snapshot
    from storage.text import printable

    store = open_store(arguments.store)
    snapshot = take_snapshot(store, arguments.run_id, in_progress=not arguments.committed)
    write_catalog(store, snapshot, arguments.file, force=arguments.force)
    found = {"file": str(arguments.file.resolve()), "bytes": arguments.file.stat().st_size, "store": store.url,
             "runs": sorted(snapshot.documents), "rounds": len(snapshot.rounds()), "shards": len(files(snapshot))}
    if arguments.json:
        print(json.dumps(found))
        return 0
    print(printable(f"wrote {arguments.file}: {len(found['runs'])} runs, {found['rounds']} rounds, "
                    f"{found['shards']} shards of {store.url}"))
    print(printable(f'open it: duckdb -readonly {arguments.file} "FROM gap_by_position"'))
    if store.url.startswith("s3://"):
        print("its paths are s3:// urls: the client needs httpfs and the credentials (CREATE SECRET)")
    return 0
