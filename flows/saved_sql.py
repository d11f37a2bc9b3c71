"""The SQL that ships, for people: what there is, what a file's columns mean, and a saved report by its name."""

import difflib
import re
import textwrap

from storage.errors import UserError
from storage.sqlfiles import SqlFile, load, names

ASKED = ("reports", "views", "macros")
"""Kinds that a query can use. Masks and checks are the round's."""
_TITLES = {"reports": "saved reports: opd sql NAME", "views": 'views: opd sql "FROM NAME"',
           "macros": "macros: opd sql 'SELECT NAME(...) FROM tokens'"}


def saved_report(name: str) -> SqlFile | None:
    """The report of that name, None for what is SQL itself. Raises UserError for a name that no report has."""
    name = name.strip()
    if not name.isidentifier():
        return None
    if name in names("reports"):
        return load("reports", name)
    if name in names("views"):
        raise UserError(f"sql: {name} is a view, not a report: ask it in SQL, as in 'FROM {name} LIMIT 10'")
    raise UserError(f"sql: no saved report is named {name}; {_nearest(name, names('reports'))}")


def check_parameters(needed: set[str], given: dict, report: SqlFile | None) -> None:
    """Raise UserError unless `given` are the values that the SQL names."""
    for name in sorted(needed - set(given)):
        if not name.isidentifier():
            raise UserError("sql: a value without a name cannot be given: write $name for ?, and --param name=VALUE")
        meaning = f" ({report.parameters[name]})" if report else ""
        raise UserError(f"sql: {report.name if report else 'the SQL'} needs --param {name}=VALUE{meaning}")
    for name in sorted(set(given) - needed):
        names = ", ".join(f"${each}" for each in sorted(needed)) or "no values"
        raise UserError(f"sql: --param {name} is not in the SQL, which names {names}")


def listing() -> list[dict]:
    """Every file that a query can use: kind, name, description."""
    return [{"kind": kind.removesuffix("s"), "name": name, "description": load(kind, name).description}
            for kind in ASKED for name in names(kind)]


def listing_lines(width: int) -> list[str]:
    """`listing` for people, first sentences only."""
    lines = []
    for kind in ASKED:
        files = [load(kind, name) for name in names(kind)]
        lines += [_TITLES[kind], *_pairs([(file.name, _first_sentence(file.description)) for file in files], width), ""]
    return [*lines, "opd sql --describe NAME tells a name's columns and their units"]


def find(name: str) -> SqlFile:
    """The report, view or macro of that name. Raises UserError with the nearest one."""
    known = {each: kind for kind in ASKED for each in names(kind)}
    if name not in known:
        raise UserError(f"sql: nothing is named {name}; {_nearest(name, list(known))}")
    return load(known[name], name)


def columns(file: SqlFile) -> list[dict]:
    """What a report or view returns, or a macro takes: column, type (null for a macro's), meaning with its unit."""
    types = {} if file.kind == "macros" else _types(file)
    return [{"column": name, "type": types.get(name), "meaning": meaning} for name, meaning in file.columns.items()]


def column_lines(file: SqlFile, width: int) -> list[str]:
    """`columns` for people."""
    about = f"{file.name} ({file.kind.removesuffix('s')}): {file.description}"
    lines = [*textwrap.wrap(about, width), *textwrap.wrap(f"grain: {file.grain}", width)]
    lines += [f"needs --param {name}=VALUE: {meaning}" for name, meaning in file.parameters.items()]
    rows = columns(file)
    side = max(len(row["column"]) for row in rows)
    return lines + _pairs([(f"{row['column']:<{side}}  {row['type'] or ''}".rstrip(), row["meaning"]) for row in rows],
                          width)


def _types(file: SqlFile) -> dict[str, str]:
    from storage.catalog import connect_empty, run_select

    sql = f"DESCRIBE {file.name}" if file.kind == "views" else f"DESCRIBE\n{file.text}"
    described = run_select(connect_empty(), sql, dict.fromkeys(file.parameters))
    return dict(zip(described["column_name"].to_pylist(), described["column_type"].to_pylist()))


def _pairs(pairs: list[tuple[str, str]], width: int) -> list[str]:
    """Two columns, the second wrapped."""
    side = min(max(len(first) for first, _ in pairs), max(width // 2, 20))
    indent = " " * (side + 4)
    lines = []
    for first, second in pairs:
        wrapped = textwrap.wrap(second, max(width - len(indent), 20)) or [""]
        if len(first) > side:
            lines.append(f"  {first}")
        else:
            wrapped[0] = f"  {first:<{side}}  {wrapped[0]}"
        lines += wrapped[:1] if len(first) <= side else [indent + wrapped[0]]
        lines += [indent + each for each in wrapped[1:]]
    return lines


def _first_sentence(text: str) -> str:
    return re.split(r"\. (?=[A-Z])", text, maxsplit=1)[0].rstrip(".")  # "et al. 2021" does not end one


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else "`opd sql --list` tells what there is"
