"""The metrics of each task, where a round has several."""

from pipeline.report.asked import Rows, Source
from pipeline.report.document import Block, Key, Plot, Plots, Section, Table
from pipeline.report.plots import Frame, Line, lines
from pipeline.report.text import count, number, on_one_line, percent

_COLORS = ("blue", "orange", "teal", "plum", "gold", "rose")
"""So many tasks get lines; all, up to _MOST, are in the table."""
_MOST = 30


def tasks_section(source: Source) -> Section | None:
    """Of the round in question, or of the run's last with scores; None where it has one task."""
    at = source.latest
    rows = [] if at is None else source.rows_of("metrics_by_task", at)
    if len(rows) < 2:
        return None
    blocks: list[Block] = [tasks_table(source, rows)]
    if source.has_history:
        blocks.insert(0, Plots(task_plots(source, [row["task"] for row in rows[:len(_COLORS)]])))
    return Section("tasks", "Tasks", f"The table is of round {at}.", blocks)


def tasks_table(source: Source, rows: Rows) -> Table:
    columns = ["task", "rollouts", "tokens", "reward", "AUROC", "reverse KL", "mean gap", "overlap",
               "student mass", "mean length", "cut off", "repeated"]
    cells = [[on_one_line(row["task"]), count(row["rollouts"]), count(row["tokens"]),
              percent(row["accuracy"]), number(row["reward_auroc"], 2), number(row["reverse_kl"]),
              number(row["mean_gap"]), number(row["overlap_ratio"]), number(row["student_mass"]),
              number(row["mean_length"], 0), percent(row["truncation_rate"]), percent(row["repeat_ratio"])]
             for row in rows[:_MOST]]
    more = f" {len(rows) - _MOST} more tasks are not shown." if len(rows) > _MOST else ""
    return Table(columns, cells, source.command("metrics_by_task"), "Reward is the share of right answers among the "
                 f"rollouts that have a reference. KL and gap are in nats per token.{more}",
                 frozenset(range(1, len(columns))))


def task_plots(source: Source, names: list[str]) -> list[Plot]:
    """A line per task over rounds."""
    rows = source.rows("metrics_by_task")
    return [by_task(source, rows, names, "accuracy", "Reward by task", Frame(
                "round", "of rollouts", percent=True, whole_x=True, bounds=(0, 1), inside=(0,)),
                "Share of right answers among the rollouts: training data, not held out."),
            by_task(source, rows, names, "reverse_kl", "Reverse KL by task", Frame(
                "round", "nats", whole_x=True, bounds=(0, None), inside=(0,)),
                "What is left to learn in each. A task that rises while others fall is paying for them.")]


def by_task(source: Source, rows: Rows, names: list[str], column: str, title: str, frame: Frame, caption: str) -> Plot:
    drawn = []
    for name, color in zip(names, _COLORS, strict=False):
        of_task = [row for row in rows if row["task"] == name]
        drawn.append(Line([row["round"] for row in of_task], [row[column] for row in of_task], color))
    return Plot(title, lines(f"task-{column}", frame, drawn), caption, source.command("metrics_by_task"),
                [Key(on_one_line(name, 40), color) for name, color in zip(names, _COLORS, strict=False)])
