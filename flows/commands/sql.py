"""`opd sql QUERY`: ask the cache. QUERY is SQL, the name of a saved report of sql/reports/, or `-` for stdin.

    opd sql                                                          # what there is to ask
    opd sql --describe tokens                                        # a name's columns, with units
    opd sql gap_by_position --json
    opd sql 'SELECT avg(gap) FROM tokens WHERE round = $round' --param round=3
    opd sql 'FROM rounds' --out rounds.parquet
"""

import json
import sys
from pathlib import Path
from typing import Any

from flows.commands.options import add_store, verb
from flows.table_output import FORMATS
from storage.errors import UserError


def add(verbs) -> None:
    parser = verb(verbs, "sql", run, "Ask the cache in SQL; without a query, list the views and the saved reports.")
    parser.add_argument("query", nargs="?", help="SQL, the name of a saved report, or - to read SQL from stdin")
    parser.add_argument("--list", action="store_true", dest="listed", help="list saved reports, views and macros")
    parser.add_argument("--describe", metavar="NAME", help="tell the columns of a report or view, with their units")
    parser.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", dest="params",
                        help="the value of $NAME in the SQL; a number where it reads as one, \"7\" in quotes is text")
    parser.add_argument("--run", dest="run_id", help="only this run")
    parser.add_argument("--committed", action="store_true", help="only committed rounds")
    parser.add_argument("--format", choices=FORMATS, help="default: what --out's name ends with, else table; csv has "
                        "text as it is, also what a spreadsheet takes for a formula")
    parser.add_argument("--json", action="store_true", help="the same as --format json")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a file: json, csv or parquet")
    parser.add_argument("--force", action="store_true", help="replace the file of --out if it exists")
    add_store(parser)


def run(arguments) -> int:
    format = _format(arguments)
    if sum((arguments.query is not None, arguments.listed, arguments.describe is not None)) > 1:
        raise UserError("sql: a query, --list and --describe are three questions: ask one")
    if arguments.describe is not None:
        return _describe(arguments, format)
    if arguments.query is None:
        return _list(arguments, format)
    _put(_ask(arguments), format, arguments)
    return 0


def parameters(given: list[str]) -> dict[str, Any]:
    """name=value pairs; a value that is a JSON number, string, list, true, false or null is that, any other is text."""
    found: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"sql: --param {pair} is not name=value, as in --param round=3")
        if name in found:
            raise UserError(f"sql: --param {name} is given twice")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    def refuse(constant: str):  # NaN and Infinity are no JSON
        raise ValueError(constant)

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, dict) else value


def _format(arguments) -> str:
    """What to print or write. Raises UserError for what contradicts itself."""
    format, out = arguments.format, arguments.out
    if arguments.json and format not in (None, "json"):
        raise UserError(f"sql: --json and --format {format} contradict each other: give one of them")
    format = "json" if arguments.json else format
    if out is None:
        if format == "parquet":
            raise UserError("sql: parquet is not for a terminal: name a file with --out FILE.parquet")
        return format or "table"
    if format is None and out.suffix[1:] in FORMATS[1:]:
        return out.suffix[1:]
    if format in (None, "table"):
        raise UserError(f"sql: {out} needs --format json, csv or parquet (a table is for a terminal)")
    return format


def _ask(arguments):
    from flows.saved_sql import check_parameters, saved_report
    from storage.catalog import connect, query
    from storage.guard import single_statement
    from storage.newfile import check_target
    from storage.objects import open_store
    from storage.snapshot import take_snapshot

    text = sys.stdin.read() if arguments.query == "-" else arguments.query
    given = parameters(arguments.params)
    report = saved_report(text)
    store = open_store(arguments.store)
    if arguments.out:  # told now, not after the query
        check_target(arguments.out, store, force=arguments.force)
    snapshot = take_snapshot(store, arguments.run_id, in_progress=not arguments.committed)
    connection = connect(store, snapshot)
    sql = report.text if report else text
    check_parameters(single_statement(connection, sql).named_parameters, given, report)
    return query(connection, sql, given)


def _put(table, format: str, arguments) -> None:
    from flows import table_output

    if format == "csv" and (formulas := table_output.runs_in_spreadsheets(table)):
        print(f"opd: {formulas} texts begin with = + - or @ and are kept as they are; a spreadsheet may run them: "
              "import the columns as text", file=sys.stderr)
    if arguments.out:
        table_output.write_file(table, format, arguments.out, force=arguments.force)
        print(f"wrote {table.num_rows} rows to {arguments.out}", file=sys.stderr)
    elif format == "table":
        from flows.terminal_table import print_table

        print_table(table)
    else:
        table_output.write_stdout(table, format)


def _list(arguments, format: str) -> int:
    from flows.saved_sql import listing, listing_lines

    return _tell(listing(), listing_lines, format, arguments)


def _describe(arguments, format: str) -> int:
    from flows.saved_sql import column_lines, columns, find

    file = find(arguments.describe)
    return _tell(columns(file), lambda width: column_lines(file, width), format, arguments)


def _tell(found: list[dict], lines, format: str, arguments) -> int:
    """Print lines for people, or the rows in another form."""
    if format == "table":
        from flows.terminal_table import print_lines, terminal_width

        print_lines(lines(terminal_width() or 100))
    else:
        import pyarrow as pa

        _put(pa.Table.from_pylist(found), format, arguments)
    return 0
