"""`opd diff A:3 B:3`: what differs between two rounds, from the config to the answers.

    opd diff gsm8k:3 gsm8k.r3.gkd.s1:3
    opd diff gsm8k:3 gsm8k:4 --all
    opd diff gsm8k:3 copy:3 --exit-code --json

Rounds in progress may be compared: what is not there yet is a dash.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from flows.commands.options import add_json, add_store, verb
from storage.errors import UserError

MISSING = "–"
_PLACE = re.compile(r"(?P<run>.+):(?P<round>[0-9]{1,9})")
_HASH = re.compile(r"[0-9a-f]{40,64}")
_REASONS = 20
"""Masks may give every token a reason of its own: the first rows are shown, the others counted."""
_CHARACTERS = 240
"""Of a value; --json has it whole."""


def add(verbs) -> None:
    parser = verb(verbs, "diff", run, "Compare two rounds: config, models, plan, files, masks, metrics, answers.")
    parser.add_argument("a", metavar="RUN:ROUND", help="a round, as in gsm8k:3")
    parser.add_argument("b", metavar="RUN:ROUND", help="the other one, of the same store")
    parser.add_argument("--all", action="store_true", dest="everything", help="show what is equal, too")
    parser.add_argument("--exit-code", action="store_true",
                        help="exit with 1 if anything but names and timings differs")
    add_store(parser)
    add_json(parser)


def run(arguments) -> int:
    from pipeline.report.diff import diff
    from storage.objects import open_store

    a, b = place(arguments.a), place(arguments.b)
    found = diff(open_store(arguments.store), a, b)
    if arguments.json:
        print(json.dumps(found))
    else:
        from flows.terminal_table import print_lines, terminal_width

        print_lines(lines(found, terminal_width() or 80, everything=arguments.everything))
    return int(arguments.exit_code and not found["same"])


def place(text: str) -> tuple[str, int]:
    """(run, round) of RUN:ROUND. Raises UserError for anything else."""
    match = _PLACE.fullmatch(text)
    if not match:
        raise UserError(f"{text[:100]!r} is not RUN:ROUND: name a run and one of its rounds, as in gsm8k:3")
    return match["run"], int(match["round"])


def lines(found: dict[str, Any], width: int, everything: bool = False) -> list[str]:
    """The comparison for people: a section where there is something to see, and one line about the others."""
    from pipeline.report.diff import SECTIONS

    out = [*(_about(letter, found[letter.lower()]) for letter in "AB"), ""]
    for section in SECTIONS:
        shown = [row for row in found[section] if everything or not row["same"]]
        if shown:
            out += [*_table(section, shown, width), ""]
    same = [section for section in SECTIONS if found[section] and all(row["same"] for row in found[section])]
    for what, names in (("the same", same), ("nothing there", [each for each in SECTIONS if not found[each]])):
        out += [f"{what}: {', '.join(names)}"] if names else []
    return out


def _about(letter: str, side: dict[str, Any]) -> str:
    state = f"committed, manifest {side['manifest'][:12]}" if side["committed"] else "in progress"
    shared = "" if side["owner"] == side["run"] else f", shared with {side['owner']}"
    return f"{letter}  {side['run']} round {side['round']}  {state}{shared}"


def _table(section: str, rows: list[dict[str, Any]], width: int) -> list[str]:
    """A section as lines no wider than `width`."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns, cells = _COLUMNS.get(section, (("A", "B"), _values))
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(section, overflow="fold")
    for name in columns:
        table.add_column(name, overflow="fold", justify="left" if columns == ("A", "B") else "right")
    for row in rows[:_REASONS] if section == "masks" else rows:
        for line in cells(row):
            table.add_row(*(Text(_shown(each)) for each in line))
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(table)
    left = len(rows) - _REASONS if section == "masks" else 0
    return [*(line.rstrip() for line in console.file.getvalue().rstrip().split("\n")),
            *([f"{left} more reasons; --json has all"] if left > 0 else [])]


# --- the cells of a row, line by line ---


def _values(row: dict[str, Any]) -> Iterator[list[Any]]:
    yield [row["name"], row["a"], row["b"]]


def _differences(row: dict[str, Any]) -> Iterator[list[Any]]:
    change = row["difference"]
    yield [row["name"], row["a"], row["b"], MISSING if change is None else f"{change:+.6g}"]


def _counts(row: dict[str, Any]) -> Iterator[list[Any]]:
    yield [row["name"], row["a"], row["b"], row.get("shared")]


def _files(row: dict[str, Any]) -> Iterator[list[Any]]:
    finished = [f"{row[side]} of {row[f'{side}_planned']}" for side in "ab"]
    yield [row["name"], *finished, *(_ranges(row[each]) for each in ("same_file", "same_bytes", "different", "only_a",
                                                                     "only_b"))]


def _accuracy(row: dict[str, Any]) -> Iterator[list[Any]]:
    for letter in "AB":
        side = row[letter.lower()]
        figures = [MISSING] * 4 if side is None else [
            side["problems"], side["k"], *(f"{side[name]:.3f} ({side[f'{name}_low']:.2f}-{side[f'{name}_high']:.2f})"
                                           for name in ("avg_at_k", "pass_at_k"))]
        last = letter == "B" and row["difference"] is not None
        yield [_benchmark(row) if letter == "A" else "", letter, *figures, f"{row['difference']:+.3f}" if last else ""]


def _pairs(row: dict[str, Any]) -> Iterator[list[Any]]:
    yield [_benchmark(row), row["problems"], row["both"], len(row["only_a"]), len(row["only_b"]), row["neither"],
           f"{row['a_higher']} : {row['b_higher']}", f"{row['chance']:.2g}"]


def _benchmark(row: dict[str, Any]) -> str:
    return row["name"] if row["role"] == "student" else f"{row['name']}, {row['role']}"


_COLUMNS = {
    "plan": (("A", "B", "shared"), _counts),
    "shards": (("A", "B", "same file", "same bytes", "differ", "only A", "only B"), _files),
    "masks": (("A", "B", "B - A"), _differences), "metrics": (("A", "B", "B - A"), _differences),
    "evaluation": (("", "problems", "k", "avg@k (95 %)", "pass@k (95 %)", "B - A"), _accuracy),
    "paired": (("problems", "both right", "only A", "only B", "neither", "higher A : B", "by chance"), _pairs)}
"""Section -> its columns behind the first, and the lines of a row."""


def _ranges(numbers: Iterable[int]) -> str:
    """#0-3, 7; nothing for none."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    parts = [f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0]) for group in groups]
    return f"#{', '.join(parts)}" if parts else ""


def _shown(value: Any) -> str:
    """A cell: what models, masks and data sets wrote loses its control characters."""
    from pipeline.report.text import on_one_line

    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:12] if _HASH.fullmatch(text) else on_one_line(text, _CHARACTERS)
