"""SQL masks: a SELECT over this round's `tokens` and `rollouts`, and `history`, the tokens of earlier rounds.

It returns exactly (rollout_id, position, weight, reason): tokens that it leaves out keep their weight. It runs on a
locked connection of its own, on one thread, over files whose hashes were checked, and sees nothing else.

Arrays: M rows that the SELECT returned.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.mask import statement
from pipeline.mask.marks import Marks
from storage import catalog
from storage.errors import UserError
from storage.relations import quoted_text
from storage.snapshot import Snapshot

COLUMNS = {"rollout_id": pa.int64(), "position": pa.int32(), "weight": pa.float64(), "reason": pa.string()}
MAX_REASONS = 256
"""Distinct reasons of one mask; they are names, counted in receipts and reports."""


class Places:
    """Finds rows of a table by (rollout_id, position)."""

    def __init__(self, tokens: pa.Table):
        self._rollouts, self._indices_N = np.unique(tokens["rollout_id"].to_numpy(), return_inverse=True)
        keys_N = self._indices_N.astype(np.int64) << 32 | tokens["position"].to_numpy()
        self._order_N = np.argsort(keys_N)
        self._keys_N = keys_N[self._order_N]

    def rows(self, rollout_ids_M: np.ndarray, positions_M: np.ndarray) -> np.ndarray:
        """Row of each pair, -1 where the table has none."""
        if not len(self._keys_N):
            return np.full(len(rollout_ids_M), -1)
        rollouts_M = np.searchsorted(self._rollouts, rollout_ids_M).clip(max=len(self._rollouts) - 1)
        keys_M = rollouts_M.astype(np.int64) << 32 | positions_M
        at_M = np.searchsorted(self._keys_N, keys_M).clip(max=len(self._keys_N) - 1)
        there_M = (self._keys_N[at_M] == keys_M) & (self._rollouts[rollouts_M] == rollout_ids_M)
        return np.where(there_M & (positions_M >= 0), self._order_N[at_M], -1)


def connect(snapshot: Snapshot, run: str, number: int):
    """A locked connection on which `tokens`, `rollouts` and `history` are those that masks of this round see."""
    connection = catalog.connect(snapshot.store, snapshot, locked=False, verified=True, threads=1)
    show_round(connection, run, number)
    catalog.lock(connection, catalog.verified_paths(snapshot))
    return connection


def check_early(texts: dict[str, str]) -> None:
    """Raise UserError for SQL that cannot be a mask: its rules, names and types, tried on an empty round."""
    if not texts:
        return
    with catalog.connect_tables({}, locked=False) as connection:
        show_round(connection, "run", 0)
        catalog.lock(connection, [])
        for name, sql in texts.items():
            evaluate(connection, sql, name, 0)


def show_round(connection, run: str, number: int) -> None:
    """What an unqualified name finds first: this round, and the tokens of those before it."""
    connection.execute("CREATE SCHEMA mask")
    for name, source, rounds in (("tokens", "tokens", "="), ("rollouts", "rollouts", "="), ("history", "tokens", "<")):
        connection.execute(f"CREATE VIEW mask.{name} AS SELECT * FROM main.{source} "
                           f"WHERE run = {quoted_text(run)} AND round {rounds} {int(number)}")
    connection.execute("SET search_path = 'mask,main'")


def evaluate(connection, sql: str, name: str, number: int) -> tuple[pa.Table, set[str]]:
    """Check and run the mask called `name`. Returns its rows as COLUMNS, and the relations that it reads."""
    reads = statement.check(connection, sql, name)
    parameters = {"round": number} if connection.extract_statements(sql)[0].named_parameters else ()
    try:
        rows = catalog.run_select(connection, sql, parameters)
    except UserError as error:
        raise UserError(f"mask {name}: {error}") from None
    return _typed(rows, name), reads


def mark(rows: pa.Table, name: str, places: Places) -> Marks:
    """The mask's rows as marks of the round's tokens. Raises UserError for weights or places that cannot be."""
    rollout_ids_M, positions_M = rows["rollout_id"].to_numpy(), rows["position"].to_numpy()
    weights_M = rows["weight"].to_numpy()
    _check_weights(weights_M, rollout_ids_M, positions_M, name)
    rows_M = places.rows(rollout_ids_M, positions_M)
    missing = np.flatnonzero(rows_M < 0)
    if len(missing):
        raise UserError(f"mask {name}: rollout {rollout_ids_M[missing[0]]} position {positions_M[missing[0]]} is no "
                        f"token of this round ({len(missing)} of {len(weights_M)} rows): join with tokens")
    names, reasons_M = _named(rows["reason"])
    if len(names) > MAX_REASONS:
        raise UserError(f"mask {name}: {len(names)} different reasons, at most {MAX_REASONS}: give them names, not "
                        "numbers or ids")
    _refuse_repeated(rows_M, reasons_M, rollout_ids_M, positions_M, name)
    order = np.lexsort([reasons_M, rows_M])
    return Marks(rows_M[order], weights_M[order], reasons_M[order], names)


def _named(reasons: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The distinct reasons in alphabetical order, and which one each row has."""
    encoded = reasons.combine_chunks().dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    return encoded.dictionary.take(pa.array(order)).to_pylist(), np.argsort(order)[encoded.indices.to_numpy()]


def _typed(rows: pa.Table, name: str) -> pa.Table:
    if rows.column_names != list(COLUMNS):
        raise UserError(f"mask {name}: it returns ({', '.join(rows.column_names)}), not ({', '.join(COLUMNS)})")
    empty = [column for column in COLUMNS if rows[column].null_count]
    if empty:
        raise UserError(f"mask {name}: {rows[empty[0]].null_count} rows have no {empty[0]}: leave out such rows")
    return pa.table({column: _cast(rows[column], kind, f"mask {name}: {column}") for column, kind in COLUMNS.items()})


def _cast(column: pa.ChunkedArray, kind: pa.DataType, what: str) -> pa.ChunkedArray:
    fits = {pa.int64(): _is_integer, pa.int32(): _is_integer, pa.float64(): _is_number, pa.string(): _is_text}[kind]
    try:
        if fits(column.type):
            return column.cast(kind)
    except pa.ArrowInvalid:  # an integer that does not fit: no such rollout or position
        pass
    raise UserError(f"{what} is {column.type}, it should be {kind}: cast it in the SELECT")


def _is_integer(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _check_weights(weights_M: np.ndarray, rollout_ids_M: np.ndarray, positions_M: np.ndarray, name: str) -> None:
    bad = np.flatnonzero(~(np.isfinite(weights_M) & (weights_M >= 0)))
    if len(bad):
        raise UserError(f"mask {name}: weight {weights_M[bad[0]]} at rollout {rollout_ids_M[bad[0]]} position "
                        f"{positions_M[bad[0]]} ({len(bad)} rows): weights are finite and at least 0")


def _refuse_repeated(rows_M: np.ndarray, reasons_M: np.ndarray, rollout_ids_M: np.ndarray, positions_M: np.ndarray,
                     name: str) -> None:
    """A token may have several reasons, and then each one's weight; the same one twice is a join gone wrong."""
    order = np.lexsort([reasons_M, rows_M])
    rows_M, reasons_M = rows_M[order], reasons_M[order]
    again = np.flatnonzero((rows_M[1:] == rows_M[:-1]) & (reasons_M[1:] == reasons_M[:-1]))
    if len(again):
        at = order[again[0]]
        raise UserError(f"mask {name}: rollout {rollout_ids_M[at]} position {positions_M[at]} is returned more than "
                        "once for one reason: use SELECT DISTINCT, or check the join")
