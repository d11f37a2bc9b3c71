"""What SQL from a person may do: read. Statements are judged by DuckDB's own parse tree, never by their text.

A locked connection is not enough. DuckDB 2 runs `WITH x AS (COPY ... TO 'file') SELECT ...` as a SELECT, also from
inside `json_execute_serialized_sql`, and an allowed path is allowed for writing too. So: one statement, whose tree
holds no node that writes, and table functions from a list.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from storage.errors import UserError
from storage.text import printable

MAX_CHARACTERS = 100_000
_QUERY_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_TABLE_FUNCTIONS = {
    "unnest", "range", "generate_series", "repeat", "repeat_row", "json_each", "json_tree", "histogram",
    "histogram_values", "read_parquet", "parquet_scan", "parquet_schema", "parquet_metadata", "parquet_file_metadata",
    "parquet_kv_metadata", "parquet_full_metadata", "parquet_bloom_probe", "duckdb_columns", "duckdb_functions",
    "duckdb_settings", "duckdb_tables", "duckdb_types", "duckdb_views", "pragma_table_info",
    "token_metrics", "rollout_metrics", "reward_auroc", "bucket_widths",  # of sql/macros
}
_EXPLAIN = re.compile(r"\s*explain\s+(?:analyze\s+)?(?:\([^()]*\)\s*)?(?P<inner>.*)", re.IGNORECASE | re.DOTALL)


def single_statement(connection, sql: str):
    """DuckDB's statement object. Raises UserError unless `sql` is exactly one statement that parses."""
    import duckdb

    if len(sql) > MAX_CHARACTERS:
        raise UserError(f"SQL: it has {len(sql)} characters, more than {MAX_CHARACTERS}: shorten it")
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise UserError(f"SQL: {one_line(error)}") from None
    if len(statements) != 1:
        raise UserError(f"SQL: expected one statement, found {len(statements)}: send them one by one")
    return statements[0]


def syntax_tree(connection, sql: str) -> dict[str, Any]:
    """The parse tree of one SELECT. Raises UserError for anything else."""
    import duckdb

    try:
        text = connection.execute("SELECT json_serialize_sql(CAST(? AS VARCHAR))", [sql]).fetchall()[0][0]
        answer = json.loads(text)
    except duckdb.Error as error:
        raise UserError(f"SQL: {one_line(error)}") from None
    except RecursionError:
        raise UserError("SQL: it nests too deep: split it into CTEs") from None
    if answer["error"]:
        raise UserError(f"SQL: only a single SELECT can run here ({answer['error_message']})")
    return answer


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of a parse tree."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def table_functions(tree: Any) -> set[str]:
    """Names of the functions in FROM clauses, lower case."""
    return {node["function"]["function_name"].lower() for node in nodes(tree) if node.get("type") == "TABLE_FUNCTION"}


def check_reads_only(connection, sql: str) -> None:
    """Raise UserError unless `sql` is one SELECT (or EXPLAIN of one) that reads and does nothing else."""
    statement = single_statement(connection, sql)
    kind = statement.type.name
    inner = sql
    if kind == "EXPLAIN":
        match = _EXPLAIN.fullmatch(statement.query)
        inner = match["inner"] if match else ""
        kind = single_statement(connection, inner).type.name
    if kind != "SELECT":
        raise UserError(f"SQL: {kind} cannot run here, the store is only read: write a SELECT"
                        + (" (for PIVOT, list the values with IN)" if kind == "MULTI" else ""))
    tree = syntax_tree(connection, inner)
    check_nodes(tree)
    refused = sorted(table_functions(tree) - _TABLE_FUNCTIONS)
    if refused:
        raise UserError(f"SQL: the table function {refused[0]}() cannot run here: the views are tokens, rollouts, "
                        "rounds and others, see SHOW TABLES")


def check_nodes(tree: Any) -> None:
    """Raise UserError if a part of the statement writes (INSERT, UPDATE, DELETE, COPY inside a CTE)."""
    for node in nodes(tree):
        kind = node.get("type")
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in _QUERY_NODES:
            raise UserError(f"SQL: {kind.split('_')[0]} inside a query cannot run here: the store is only read")


def one_line(error: Exception) -> str:
    """DuckDB's message without the echo of the statement, or the last line of a traceback, on one line."""
    message = str(error).split("\n\nLINE ")[0]
    if message.startswith("Traceback "):
        message = message.rstrip().rpartition("\n")[2]
    return printable(" ".join(message.split()))[:500]
