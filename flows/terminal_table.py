"""A table for people: what a terminal of 80 or 120 columns can show of it.

    print_table(table)

- A table that fits is printed as it is. One that is too wide gets its headers broken at underscores and its texts and
  lists cut, and if that is not enough, turned: columns down the side, as many rows beside each other as fit.
- A row alone that is too wide, or has texts of several lines, has them whole, one column below the other.
- A pipe has no width: rows stay rows, and texts whole.
- Cells: floats with 4 decimals (4 digits where that would hide them), lists as their first entries and how many more,
  NULL for null. Text is a model's and hostile: `printable` takes its control characters.
"""

import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from flows.table_output import rows
from storage.text import printable

_GAP = "  "
_NO_WIDTH = 100_000
_SHOWN_ROWS = 200
_TURNED_LINES = 300
_SHOWN_ENTRIES = 4
_LEAST_TEXT = 16
"""A text cut shorter than this says little: then the table is turned."""
_TURNED_TEXTS = (40, 20, 14)


def print_table(table) -> None:
    """Print the first rows of an Arrow table, and how many more there are."""
    lines, count = table_lines(table, terminal_width())
    more = table.num_rows - count
    print_lines([*lines, f"{more} more rows; --format json or csv prints all"] if more > 0 else lines)


def terminal_width() -> int | None:
    """Columns of the terminal, None where stdout is a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_lines(lines: Sequence[str]) -> None:
    """Print; what the terminal's encoding lacks is shown by its code."""
    encoding = sys.stdout.encoding or "utf-8"
    print("\n".join(lines).encode(encoding, "backslashreplace").decode(encoding))


def table_lines(table, width: int | None) -> tuple[list[str], int]:
    """(lines, number of rows in them) for a terminal of `width` columns, None for a pipe."""
    records = rows(table.slice(0, _SHOWN_ROWS))
    names = list(records[0]) if records else table.column_names
    if not records:
        return [*textwrap.wrap(printable(", ".join(names)), width or _NO_WIDTH), "no rows"], 0
    columns = [_Column(name, [record[name] for record in records]) for name in names]
    if len(records) == 1 and (any(column.has_lines for column in columns) or _total(columns) > (width or _NO_WIDTH)):
        return _turned(columns, width or _NO_WIDTH, 1)
    if width is not None and not _fit(columns, width):
        for column in columns:
            column.restore()
        return _turned(columns, width, len(records))
    return _upright(columns, len(records)), len(records)


def shown(value: Any) -> str:
    """A cell."""
    return printable(value) if isinstance(value, str) else _inner(value)


class _Column:
    """Cells of one column as text, `width` wide, under a header of several lines."""

    def __init__(self, name: str, values: Sequence[Any]):
        held = [value for value in values if value is not None]
        self.name = printable(name)
        self.is_number = all(isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) for value in held)
        self.is_free = bool(held) and all(isinstance(value, (str, list, dict)) for value in held)
        floats = [value for value in held if isinstance(value, float)]
        self._values = values
        self._whole = [_number(value, floats) if isinstance(value, float) else shown(value) for value in values]
        self.restore()

    @property
    def has_lines(self) -> bool:
        return any(isinstance(value, str) and "\n" in value for value in self._values)

    def first_lines(self) -> list[str]:
        """The first cell with its own line breaks."""
        value = self._values[0]
        return [printable(line) for line in value.split("\n")] if isinstance(value, str) else self.cells[:1]

    def restore(self) -> None:
        """Cells and header as they are."""
        self.header, self.cells = [self.name], self._whole

    @property
    def body_width(self) -> int:
        return max((_cells(cell) for cell in self.cells), default=0)

    @property
    def width(self) -> int:
        return max(self.body_width, *map(_cells, self.header))

    def break_header(self) -> None:
        """Break a header that is wider than its cells behind underscores."""
        parts = [part for part in self.name.replace("_", "_\0").split("\0") if part] or [""]
        limit = max(self.body_width, *map(_cells, parts))
        self.header = [""]
        for part in parts:
            if self.header[-1] and _cells(self.header[-1] + part) > limit:
                self.header.append("")
            self.header[-1] += part

    def cut(self, width: int) -> None:
        self.cells = [_cut(cell, width) for cell in self.cells]


def _fit(columns: list[_Column], width: int) -> bool:
    """Make an upright table fit into `width`, if that leaves it readable."""
    if _total(columns) <= width:
        return True
    for column in columns:
        column.break_header()
    free = sorted((column for column in columns if column.is_free), key=lambda column: column.width)
    room = width - _total(columns) + sum(column.width for column in free)
    for index, column in enumerate(free):  # the narrowest first: what it leaves goes to the others
        share = room // (len(free) - index)
        if column.width > share:
            if share < max(_LEAST_TEXT, *map(_cells, column.header)):
                return False
            column.cut(share)
        room -= column.width
    return _total(columns) <= width


def _total(columns: list[_Column]) -> int:
    return sum(column.width for column in columns) + len(_GAP) * (len(columns) - 1)


def _upright(columns: list[_Column], count: int) -> list[str]:
    height = max((len(column.header) for column in columns), default=0)
    headers = [[""] * (height - len(column.header)) + column.header for column in columns]
    lines = [_line(columns, [header[index] for header in headers]) for index in range(height)]
    lines.append(_GAP.join("─" * column.width for column in columns))
    lines += [_line(columns, [column.cells[index] for column in columns]) for index in range(count)]
    return lines


def _line(columns: list[_Column], cells: list[str]) -> str:
    return _GAP.join(_padded(cell, column.width, column.is_number) for column, cell in zip(columns, cells)).rstrip()


def _turned(columns: list[_Column], width: int, count: int) -> tuple[list[str], int]:
    """Blocks of rows beside each other, a line per column; texts are cut where that makes fewer blocks.

    Returns (lines, rows in them): no block begins after _TURNED_LINES.
    """
    side = max(_cells(column.name) for column in columns)
    room = max(width - side - len(_GAP), _LEAST_TEXT)
    if count == 1:
        return [line for column in columns for line in _one_row(column, side, room)], 1
    natural = [max(_cells(column.cells[place]) for column in columns) for place in range(count)]
    numbers = [max((_cells(column.cells[place]) for column in columns if column.is_number), default=0)
               for place in range(count)]  # a number is whole or worthless: ids are typed into the next query
    cut = [[max(min(each, most, room), least) for each, least in zip(natural, numbers)] for most in _TURNED_TEXTS]
    widths = min(cut, key=lambda widths: len(list(_blocks(widths, room))))
    lines: list[str] = []
    for places in _blocks(widths, room):
        if len(lines) >= _TURNED_LINES:
            return lines, places.start
        lines.append("─" * (side + sum(widths[place] + len(_GAP) for place in places)))
        for column in columns:
            cells = [_padded(_cut(column.cells[place], widths[place]), widths[place], False) for place in places]
            lines.append(_GAP.join([_padded(column.name, side, False), *cells]).rstrip())
    return lines, count


def _blocks(widths: list[int], room: int) -> Iterator[range]:
    """Places of rows that fit beside each other, at least one."""
    start = 0
    while start < len(widths):
        end, used = start + 1, widths[start]
        while end < len(widths) and used + len(_GAP) + widths[end] <= room:
            used += len(_GAP) + widths[end]
            end += 1
        yield range(start, end)
        start = end


def _one_row(column: _Column, side: int, room: int) -> Iterator[str]:
    """A row alone has its texts whole, with their line breaks, on as many lines as they take."""
    from rich.cells import chop_cells

    name = _padded(column.name, side, False)
    for line in column.first_lines():
        for piece in chop_cells(line, room) or [""]:
            yield f"{name}{_GAP}{piece}".rstrip()
            name = " " * side


def _number(value: float, column: Sequence[float]) -> str:
    """4 decimals for all of a column, or 4 digits where 4 decimals would show nothing of one of them."""
    sizes = [abs(each) for each in column if each and math.isfinite(each)]
    return f"{value:.4f}" if not sizes or min(sizes) >= 1e-3 and max(sizes) < 1e9 else f"{value:.4g}"


def _inner(value: Any) -> str:
    """A value that is no text, or one inside of a list."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return json.dumps(printable(value), ensure_ascii=False)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{printable(str(name))}: {_inner(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        more = [f"+{len(value) - _SHOWN_ENTRIES}"] if len(value) > _SHOWN_ENTRIES else []
        return "[" + ", ".join([*map(_inner, value[:_SHOWN_ENTRIES]), *more]) + "]"
    return printable(str(value))


def _cells(text: str) -> int:
    """Columns of a terminal: a Chinese character takes two, an accent that combines none."""
    from rich.cells import cell_len

    return cell_len(text)


def _cut(text: str, width: int) -> str:
    from rich.cells import set_cell_size

    return text if _cells(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - _cells(text))
    return space + text if right else text + space
