"""The table of a sweep for people: a line per preset, in 80 columns.

    print_table(rows)                      # rows as pipeline/report/sweep.py takes them
"""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

MISSING = "–"
_LEGEND = ("KL to the teacher and entropy in nats, mass on the teacher's top-K: of the final student, on the round's "
           "cached positions")
_EARLY = "; early: branches whose training was stopped before its end"
_NUMBERS = ("closing_teacher_kl", "closing_student_entropy", "closing_student_mass")


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print what the round came to under each preset; the references first, then the most accurate."""
    from flows.terminal_table import print_lines, terminal_width

    print_lines(table_lines(rows, terminal_width() or 80))


def table_lines(rows: Sequence[dict[str, Any]], width: int) -> list[str]:
    """Lines no wider than `width`."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pipeline.report.sweep import table
    from pipeline.report.text import on_one_line

    summed = table(rows)
    several = any(row["seeds"] > 1 for row in summed)
    early = any(row["stopped_early"] for row in summed)
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    drawn.add_column("preset", overflow="fold")
    for name in ("seeds", "avg@k", *(["min-max"] if several else []), "KL", "entropy", "mass", *(["early"] if early
                                                                                             else [])):
        drawn.add_column(name, justify="right", no_wrap=True)
    for row in summed:
        cells = [on_one_line(row["preset"], 64), str(row["seeds"]), _number(row["avg_at_k"]),
                 *([_spread(row)] if several else []), *(_number(row[each]) for each in _NUMBERS),
                 *([str(row["stopped_early"] or "")] if early else [])]
        drawn.add_row(*(Text(cell) for cell in cells), end_section=_is_last_reference(row, summed))
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(drawn)
    return [*(line.rstrip() for line in console.file.getvalue().rstrip().split("\n")),
            *textwrap.wrap(_LEGEND + (_EARLY if early else ""), width)]


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _spread(row: dict[str, Any]) -> str:
    low, high = row["avg_at_k_min"], row["avg_at_k_max"]
    return "" if low == high else f"{low:.3f}-{high:.3f}"


def _is_last_reference(row: dict[str, Any], summed: list[dict[str, Any]]) -> bool:
    references = [each for each in summed if each["reference"]]
    return bool(references) and row is references[-1]
