"""An Arrow table as JSON, CSV or Parquet, to stdout or to a file that appears whole.

What each form keeps:
- JSON: one array of objects. NaN and infinities, which JSON has not, are null; whole decimals are numbers.
- CSV: one header line; lists, structs and maps as JSON text; null is empty and the empty text is `""`. Text stays as
  it is, to the character: a token is often `=` or `-`, and a prefix against spreadsheets, which run cells that begin
  with = + - or @, would falsify what this tool exists to show. `runs_in_spreadsheets` finds such cells, to warn.
- Parquet: the types, as pyarrow writes them.

A column name that comes twice, as in a join's `SELECT *`, gets _1, _2 in all of them.
"""

import decimal
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from storage.errors import UserError
from storage.text import printable

FORMATS = ("table", "json", "csv", "parquet")
_JSON_ROWS = 10_000
_FORMULA = r"^[=+\-@\t\r]"


def write(table, format: str, sink: BinaryIO) -> None:
    """Write `table` as json, csv or parquet."""
    {"json": _write_json, "csv": _write_csv, "parquet": _write_parquet}[format](_unique(table), sink)


def write_stdout(table, format: str) -> None:
    """The same to stdout. On a terminal, which obeys control characters, text loses them; a pipe gets it as it is."""
    import io

    raw = getattr(sys.stdout, "buffer", None)
    if raw and not sys.stdout.isatty():
        write(table, format, raw)
        return
    sink = io.BytesIO()
    write(table, format, sink)
    text = sink.getvalue().decode()
    if not sys.stdout.isatty():  # a stream of text alone, as contextlib.redirect_stdout sets up
        sys.stdout.write(text)
        return
    for line in text.splitlines():
        print(printable(line))


def write_file(table, format: str, target: Path, *, force: bool = False) -> None:
    """The same to a file. Raises UserError if it exists (without `force`) or cannot be written."""
    from storage.newfile import new_file

    with new_file(target, force=force) as temp, open(temp, "xb") as sink:
        write(table, format, sink)


def rows(table) -> list[dict]:
    """Rows as dicts."""
    return _unique(table).to_pylist()


def json_value(value: Any) -> Any:
    """`value` with null for what JSON cannot hold: a log tail is -inf where K is the whole vocabulary."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):  # sum() of integers is one
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {key: json_value(each) for key, each in value.items()}
    return [json_value(each) for each in value] if isinstance(value, (list, tuple)) else value


def runs_in_spreadsheets(table) -> int:
    """How many text cells a spreadsheet that opens the CSV may take for formulas."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = [column for column in table.columns if pa.types.is_string(column.type)]
    return sum(pc.sum(pc.match_substring_regex(column, _FORMULA)).as_py() or 0 for column in texts)


def _unique(table):
    names: list[str] = []
    for name in table.column_names:
        places = range(1, len(table.column_names) + 1)
        names.append(next(each for each in [name, *(f"{name}_{place}" for place in places)]
                          if each not in names and (each == name or each not in table.column_names)))
    return table.rename_columns(names)


def _dumped(value: Any) -> str:
    return json.dumps(json_value(value), default=_text, allow_nan=False)


def _text(value: Any) -> str:
    """Dates, durations and whatever else JSON has no form for."""
    return value.hex() if isinstance(value, bytes) else str(value)


def _write_json(table, sink: BinaryIO) -> None:
    for piece in _json_pieces(table):
        sink.write(piece.encode())


def _json_pieces(table) -> Iterator[str]:
    yield "["
    for start in range(0, table.num_rows, _JSON_ROWS):
        part = table.slice(start, _JSON_ROWS).to_pylist()
        yield (", " if start else "") + ", ".join(map(_dumped, part))
    yield "]\n"


def _write_csv(table, sink: BinaryIO) -> None:
    import pyarrow.csv

    pyarrow.csv.write_csv(_flat(table), sink)


def _write_parquet(table, sink: BinaryIO) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        pyarrow.parquet.write_table(table, sink, compression="zstd")
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:  # a union, an interval
        reason = " ".join(str(error).split())
        raise UserError(f"Parquet cannot hold this result ({reason}): cast the column, as in x::VARCHAR") from error


def _flat(table):
    """`table` with every column that a CSV cannot hold as JSON text."""
    columns = [column if _is_plain(column.type) else _as_json(column) for column in table.columns]
    return type(table).from_arrays(columns, names=table.column_names)


def _is_plain(kind) -> bool:
    import pyarrow as pa

    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string, pa.types.is_decimal,
             pa.types.is_date, pa.types.is_timestamp, pa.types.is_time, pa.types.is_null)
    return any(test(kind) for test in tests)


def _as_json(column):
    """Enums as their text; lists, structs, maps, intervals and bytes as JSON."""
    import pyarrow as pa

    def cell(value: Any) -> str | None:
        return value if value is None or isinstance(value, str) else _dumped(value)

    return pa.chunked_array([pa.array(map(cell, column.to_pylist()), pa.string())])
