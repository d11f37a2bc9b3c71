"""Whether the figures that tell a sound round from an unsound one lie within their bounds."""

from typing import Any

from pipeline.report.asked import Rows, Source
from pipeline.report.document import Note, Section, Table
from pipeline.report.text import MISSING, number

_FOR_LSM = "student_mass"
"""A figure that matters to losses renormalised on the teacher's top-K."""
_MEANINGS = {"rollout_ratio": "mean of the scorer's probability / the engine's",
             "rollout_kl": "KL of the rollout engine from the scorer, nats",
             "rollout_ess": "effective sample size of these ratios", "ess": "smallest of a training step",
             "student_mass": "student's mass on the teacher's top-K"}


def figures(source: Source) -> Rows:
    """Verdicts of the report `health` that there are, in its order."""
    lsm = source.at("config.objective.type") == "teacher_topk_lsm"
    return [row for row in source.rows("health") if row["holds"] is not None and (lsm or row["figure"] != _FOR_LSM)]


def health_section(source: Source) -> Section:
    rows = figures(source)
    if not rows:
        return Section("health", "Health", "", [Note("No figures yet: the score stage has not finished a shard here.")])
    table = by_figure(source, rows) if source.number is not None else by_round(source, rows)
    return Section("health", "Health", "Far from the engine that wrote, the scores are another model's; a small "
                   "effective sample size says that few tokens carry the gradient.", [table])


def by_figure(source: Source, rows: Rows) -> Table:
    """One round: a row per figure."""
    cells = [[row["figure"], number(row["value"]), bounds(row), "✓" if row["holds"] else "✗", _MEANINGS[row["figure"]]]
             for row in rows]
    return Table(["figure", "value", "bounds", "holds", "meaning"], cells, source.command("health"),
                 numeric=frozenset({1}))


def by_round(source: Source, rows: Rows) -> Table:
    """A row per round, a column per figure."""
    names = list(dict.fromkeys(row["figure"] for row in rows))
    limits = {row["figure"]: bounds(row) for row in rows}
    found = {(row["round"], row["figure"]): row for row in rows}
    numbers = list(dict.fromkeys(row["round"] for row in rows))
    cells = [[str(each), *[verdict(found.get((each, name))) for name in names]] for each in numbers]
    return Table(["round", *[f"{name} ({limits[name]})" for name in names]], cells, source.command("health"),
                 "; ".join(f"{name}: {_MEANINGS[name]}" for name in names) + ".",
                 frozenset(range(1, 1 + len(names))))


def verdict(row: dict[str, Any] | None) -> str:
    return MISSING if row is None else f"{number(row['value'])} {'✓' if row['holds'] else '✗'}"


def bounds(row: dict[str, Any]) -> str:
    if row["most"] is None:
        return f"from {row['least']:g}"
    return f"{number(row['least'], 1)} to {number(row['most'], 1)}"
