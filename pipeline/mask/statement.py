"""What SQL a mask may be: one SELECT over `tokens`, `rollouts` and `history` that gives the same rows every time.

Judged by DuckDB's parse tree and its own list of functions, on top of what storage/guard.py refuses. A function is
allowed if DuckDB says that it is consistent; a macro, if everything that it expands to is.
"""

from collections.abc import Iterable
from typing import Any

from storage.errors import UserError
from storage.guard import check_nodes, nodes, single_statement, syntax_tree

RELATIONS = {"tokens", "rollouts", "history"}
PARAMETERS = {"round"}

_TABLE_FUNCTIONS = {"unnest", "range", "generate_series"}
_CLOCKS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
"""Read the clock also when written without brackets, as if they were columns."""
_INCONSISTENT = {"age", "current_localtime", "current_localtimestamp", "reservoir_quantile"}
"""DuckDB calls them consistent; they read the clock (`age` of one argument) or draw at random."""
_BUILT_IN = {"unnest"}
"""Understood by the binder, so not in the list of functions."""
_AGGREGATE_BY_NAME = {"list_aggr", "list_aggregate", "array_aggr", "array_aggregate", "aggregate"}


def check(connection, sql: str, name: str) -> set[str]:
    """Raise UserError, naming the mask, unless `sql` may be a mask. Returns which of RELATIONS it reads."""
    try:
        statement = single_statement(connection, sql)
        if statement.type.name != "SELECT":
            raise UserError(f"SQL: a mask is one SELECT, not {statement.type.name}")
        unknown = set(statement.named_parameters) - PARAMETERS
        if unknown:
            raise UserError(f"SQL: the parameter ${sorted(unknown)[0]} is not known: a mask has $round only")
        tree = syntax_tree(connection, sql)
        check_nodes(tree)
        _check_sources(tree)
        _check_functions(connection, tree)
    except UserError as error:
        raise UserError(f"mask {name}: {error}") from None
    return _tables(tree) & RELATIONS


def _check_sources(tree: Any) -> None:
    named = RELATIONS | {key.lower() for node in nodes(tree) if "cte_map" in node for key in _ctes(node)}
    for node in nodes(tree):
        kind = node.get("type")
        if node.get("sample"):
            raise UserError("SQL: a sample is refused, masks are the same every time: select by a hash() of the row")
        if kind == "SHOW_REF":
            raise UserError("SQL: DESCRIBE, SHOW and SUMMARIZE are no masks")
        if kind == "BASE_TABLE" and not (_is_plain(node) and node["table_name"].lower() in named):
            raise UserError(f"SQL: {node['table_name']!r} cannot be read: a mask sees tokens, rollouts and history")
        if kind == "TABLE_FUNCTION" and node["function"]["function_name"].lower() not in _TABLE_FUNCTIONS:
            raise UserError(f"SQL: {node['function']['function_name']}() cannot be read: a mask sees tokens, rollouts "
                            "and history")


def _is_plain(table: dict[str, Any]) -> bool:
    """Written without a schema or database in front."""
    return not table["schema_name"] and not table["catalog_name"]


def _tables(tree: Any) -> set[str]:
    return {node["table_name"].lower() for node in nodes(tree) if node.get("type") == "BASE_TABLE"}


def _ctes(node: dict[str, Any]) -> Iterable[str]:
    return (entry["key"] for entry in node["cte_map"]["map"])


def _check_functions(connection, tree: Any) -> None:
    for name in _names(tree):
        reason = _inconsistent(connection, name, set())
        if reason:
            raise UserError(f"SQL: {name}() is refused, masks are the same every time: {reason}")


def _names(tree: Any) -> list[str]:
    """Functions, aggregates and clocks that an expression names, lower case, sorted."""
    found = set()
    for node in nodes(tree):
        if node.get("class") in ("FUNCTION", "WINDOW"):
            name = node["function_name"].lower()
            found.add(name)
            if name in _AGGREGATE_BY_NAME:
                found.add(_aggregate_name(node))
        if node.get("class") == "COLUMN_REF" and len(node["column_names"]) == 1:
            found |= {node["column_names"][0].lower()} & _CLOCKS
    return sorted(found)


def _aggregate_name(node: dict[str, Any]) -> str:
    """The aggregate that list_aggregate(list, 'name') names; it must be written out."""
    arguments = [argument.get("expression", argument) for argument in node["arguments"]]
    constant = arguments[1] if len(arguments) > 1 else {}
    if constant.get("class") != "CONSTANT":
        raise UserError(f"SQL: {node['function_name']}() needs the name of its aggregate written out")
    literal = constant.get("literal") or constant.get("value") or {}
    return str(literal.get("text", literal.get("value"))).lower()


def _inconsistent(connection, name: str, above: set[str]) -> str | None:
    """Why a function may give different answers, None if it may not. `above` are the macros being expanded."""
    if name in _CLOCKS | _INCONSISTENT:
        return "it reads the clock or draws at random"
    if name in _BUILT_IN or name in above:
        return None
    rows = connection.execute("SELECT stability, function_type, macro_definition FROM duckdb_functions() "
                              "WHERE lower(function_name) = ? "
                              "AND function_type IN ('scalar', 'aggregate', 'window', 'macro')", [name]).fetchall()
    if not rows:
        return "DuckDB does not list it"
    for stability, kind, definition in rows:
        if kind == "macro":
            for inner in _names(syntax_tree(connection, f"SELECT {definition}")):
                reason = _inconsistent(connection, inner, above | {name})
                if reason:
                    return f"{inner}(): {reason}"
        elif stability != "CONSISTENT":
            return f"DuckDB calls it {(stability or kind).lower().replace('_', ' ')}"
    return None
