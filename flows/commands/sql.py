"""`opd sql QUERY`: ask the cache. QUERY is SQL, the name of a saved report of sql/reports/, or `-` for stdin."""

import difflib
import json
import math
import sys

from flows.commands.options import add_json, add_store, verb
from storage.errors import UserError


def add(verbs) -> None:
    parser = verb(verbs, "sql", run, "Ask the cache in SQL; views: rollouts, tokens, masked_tokens, topk, steps, "
                                     "evaluations, rounds, shards, timings.")
    parser.add_argument("query", help="SQL, the name of a saved report, or - to read SQL from stdin")
    parser.add_argument("--run", dest="run_id", help="only this run")
    parser.add_argument("--committed", action="store_true", help="only committed rounds")
    add_store(parser)
    add_json(parser)


def run(arguments) -> int:
    from storage.catalog import connect, query
    from storage.objects import open_store
    from storage.snapshot import take_snapshot

    text = sys.stdin.read() if arguments.query == "-" else arguments.query
    store = open_store(arguments.store)
    snapshot = take_snapshot(store, arguments.run_id, in_progress=not arguments.committed)
    table = query(connect(store, snapshot), saved_report(text) or text)
    if arguments.json:
        print(json.dumps([json_value(row) for row in rows(table)], default=str, allow_nan=False))
    else:
        print_table(table)
    return 0


def saved_report(name: str) -> str | None:
    """The SQL of a saved report, None for what is SQL itself. Raises UserError for a name that no report has."""
    from storage.sqlfiles import load, names

    if not name.strip().isidentifier():
        return None
    if name.strip() not in names("reports"):
        near = difflib.get_close_matches(name, names("reports"), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names('reports'))}"
        raise UserError(f"sql: no saved report is named {name.strip()}; {hint}")
    return load("reports", name.strip()).text


def rows(table) -> list[dict]:
    """Rows as dicts. A name that comes twice, as in a join's `SELECT *`, gets _1, _2: a dict would drop columns."""
    names, seen = [], {}
    for name in table.column_names:
        names.append(f"{name}_{seen[name]}" if name in seen else name)
        seen[name] = seen.get(name, 0) + 1
    return table.rename_columns(names).to_pylist()


def json_value(value):
    """`value` with null for what JSON cannot hold: a log tail is -inf where K is the whole vocabulary."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: json_value(each) for key, each in value.items()}
    return [json_value(each) for each in value] if isinstance(value, list) else value


def print_table(table, limit: int = 200) -> None:
    """Print at most `limit` rows for people; model text loses its control characters."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    first = rows(table.slice(0, limit))
    shown = Table(*[escape(printable_cell(name)) for name in (first[0] if first else table.column_names)])
    for row in first:
        shown.add_row(*[escape(printable_cell(value)) for value in row.values()])
    console = Console()
    if not console.is_terminal:  # a pipe has no width to fit into
        console.width = 10_000
    console.print(shown)
    if table.num_rows > limit:
        print(f"{table.num_rows - limit} more rows; --json prints all")


def printable_cell(value) -> str:
    from storage.text import printable

    return f"{value:.4f}" if isinstance(value, float) else printable(str(value))
