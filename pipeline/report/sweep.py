"""One round under many objectives: a table by preset, and a page with a plot per metric, each preset a line of dots.

    table(rows)                                        # a dict per preset, the most accurate first
    write_sweep(rows, title, folder, "gsm8k.r3.sweep")  # {"html", "png", "json"}: paths

A row is one branch: {preset, seed, run, round, stopped} and a number or None for each of METRICS. Rows whose preset is
one of REFERENCES are no part of the sweep, but what it is compared with: the round as it was played, the student that
it began with. The same rows give the same bytes.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.report import sweep_plot
from pipeline.report.document import Key, Note, Plot, Plots, Report, Section, Table, Tile
from pipeline.report.text import MISSING, count, number, on_one_line, percent
from storage.newfile import make_folder, new_file

Row = dict[str, Any]
REFERENCES = ("as it was", "before")
METRICS = ("avg_at_k", "closing_teacher_kl", "closing_student_entropy", "closing_student_mass", "closing_drift",
           "masked_share", "steps")
_ENDED = (None, "", "done")
"""`stopped` of a training that took all its steps."""


def table(rows: Sequence[Row]) -> list[Row]:
    """A dict per preset: {preset, reference, seeds, graded, stopped_early: counts of rows} and for each of METRICS its
    mean, `_min` and `_max` over the seeds that have it, None where none has.

    References come first, then presets by their mean accuracy, the best first and those without one last.
    """
    found = [_summed(preset, [row for row in rows if row["preset"] == preset])
             for preset in dict.fromkeys(row["preset"] for row in rows)]
    return sorted(found, key=lambda row: (not row["reference"], row["avg_at_k"] is None, -(row["avg_at_k"] or 0)))


def _summed(preset: str, rows: Sequence[Row]) -> Row:
    found = {"preset": preset, "reference": preset in REFERENCES, "seeds": len(rows),
             "graded": sum(row.get("avg_at_k") is not None for row in rows),
             "stopped_early": sum(row.get("stopped") not in _ENDED for row in rows)}
    for metric in METRICS:
        held = [row[metric] for row in rows if row.get(metric) is not None]
        found |= {metric: sum(held) / len(held) if held else None, f"{metric}_min": min(held, default=None),
                  f"{metric}_max": max(held, default=None)}
    return found


def write_sweep(rows: Sequence[Row], title: str, folder: Path, name: str) -> dict[str, Path]:
    """Write NAME.html, which shows everything, NAME.png, the plots alone, and NAME.json, {title, table, rows}.

    Raises UserError if the folder cannot be written.
    """
    from pipeline.report import html

    summed = table(rows)
    panels = sweep_plot.panels(rows, [row["preset"] for row in summed if not row["reference"]])
    contents = {"html": html.render(_report(rows, summed, panels, title)).encode(),
                "png": sweep_plot.png(panels, on_one_line(title)),
                "json": json.dumps({"title": title, "table": summed, "rows": list(rows)}, indent=1,
                                   allow_nan=False).encode() + b"\n"}
    make_folder(folder, "sweep")
    paths = {kind: folder / f"{name}.{kind}" for kind in contents}
    for kind, path in paths.items():
        with new_file(path, force=True) as draft:
            draft.write_bytes(contents[kind])
    return paths


# --- the page ---


def _report(rows: Sequence[Row], summed: list[Row], panels: list[sweep_plot.Panel], title: str) -> Report:
    presets = [row for row in summed if not row["reference"]]
    sections = [Section("plots", "By preset", _reading(presets), [_plots(rows, panels)] if panels else
                        [Note("Nothing is measured yet.")]),
                Section("presets", "In numbers", "", [_presets(rows, summed)]),
                Section("branches", "Branches", "", [_branches(rows)])]
    seeds = max((row["seeds"] for row in presets), default=0)
    state = f"{len(presets)} presets, {seeds} {'seed' if seeds == 1 else 'seeds'}"
    return Report(on_one_line(title, 200), "Sweep", state, False, [], _tiles(summed), sections, _ask(rows, METRICS))


def _reading(presets: list[Row]) -> str:
    several = any(row["seeds"] > 1 for row in presets)
    dots = "A dot is a seed, the bar their mean" if several else "A dot is a branch"
    return (f"{dots}; presets are in order of accuracy. What a preset gains counts where it is larger than what the "
            "seeds make of it.")


def _plots(rows: Sequence[Row], panels: list[sweep_plot.Panel]) -> Plots:
    return Plots([Plot(panel.title, sweep_plot.svg(panel), panel.caption, _ask(rows, [panel.metric]),
                       [Key(level.label, "orange", level.style) for level in panel.levels]) for panel in panels])


def _presets(rows: Sequence[Row], summed: list[Row]) -> Table:
    columns = ["preset", "seeds", "avg@k", "KL to the teacher", "entropy", "student mass", "drift", "stopped"]
    cells = [[on_one_line(row["preset"]), count(row["seeds"]), _spread(row, "avg_at_k", percent),
              *(_spread(row, f"closing_{each}", number) for each in ("teacher_kl", "student_entropy", "student_mass")),
              number(row["closing_drift"]), count(row["stopped_early"])]
             for row in summed]
    caption = ("Means over seeds, with the lowest and the highest. KL, entropy and drift are in nats, of the student "
               "that the round ended with, on the round's cached positions. Stopped: branches that trained less than "
               "was planned.")
    return Table(columns, cells, _ask(rows, METRICS), caption, frozenset(range(1, len(columns))))


def _spread(row: Row, metric: str, shown) -> str:
    low, high = row[f"{metric}_min"], row[f"{metric}_max"]
    mean = shown(row[metric])
    return mean if low == high else f"{mean} ({shown(low).removesuffix(' %')} to {shown(high).removesuffix(' %')})"


def _branches(rows: Sequence[Row]) -> Table:
    """Every branch by its id, for `opd report`, `opd diff` and `opd continue`."""
    columns = ["preset", "seed", "run", "avg@k", "KL to the teacher", "entropy", "student mass", "steps",
               "ended"]
    cells = [[on_one_line(row["preset"]), count(row["seed"]), on_one_line(row["run"]), percent(row["avg_at_k"]),
              number(row["closing_teacher_kl"]), number(row["closing_student_entropy"]),
              number(row["closing_student_mass"]), count(row["steps"]), on_one_line(row["stopped"] or MISSING)]
             for row in rows]
    return Table(columns, cells, _ask(rows, METRICS), "", frozenset({1, 3, 4, 5, 6, 7}), folded=len(rows) > 14)


def _tiles(summed: list[Row]) -> list[Tile]:
    """The most accurate preset, and what it is compared with."""
    graded = [row for row in summed if row["avg_at_k"] is not None]
    best = next((row for row in graded if not row["reference"]), None)
    tiles = [Tile(row["preset"], percent(row["avg_at_k"]), "avg@k") for row in graded if row["reference"]]
    if best:
        seeds = f"mean of {best['graded']} seeds" if best["graded"] > 1 else "one seed"
        tiles.insert(0, Tile("most accurate", percent(best["avg_at_k"]), f"{on_one_line(best['preset'])}, {seeds}"))
    return tiles


def _ask(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The command that answers with these columns of the sweep's branches. Run ids need no quoting, they are clean."""
    runs = [row["run"] for row in rows if row["preset"] not in REFERENCES]
    number = next((row["round"] for row in rows), 0)
    return (f"opd sql \"SELECT run, {', '.join(columns)} FROM rounds WHERE starts_with(run, "
            f"'{os.path.commonprefix(runs)}') AND round = {number}\"")
