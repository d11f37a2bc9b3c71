"""What prefixes of the student's rollouts are worth: continuations by student and teacher, by depth."""

from pipeline.report.asked import Rows, Source
from pipeline.report.document import Block, Key, Plot, Plots, Section, Table
from pipeline.report.plots import Frame, Line, lines
from pipeline.report.text import count, interval, on_one_line, percent

_TASKS = 3
"""So many tasks get plots; all are in the table."""


def depth_section(source: Source) -> Section | None:
    """Of the round in question, or of the run's last with continuations; None without any."""
    rows = source.rows("accuracy_by_depth")
    if not rows:
        return None
    at = max(row["round"] for row in rows)
    rows = [row for row in rows if row["round"] == at]
    plots = []
    for index, name in enumerate(list(dict.fromkeys(row["task"] for row in rows))[:_TASKS]):
        of_task = [row for row in rows if row["task"] == name]
        plots += [accuracy_plot(source, f"depth-{index}", on_one_line(name), of_task),
                  turned_plot(source, f"turned-{index}", on_one_line(name), of_task)]
    blocks: list[Block] = [Plots(plots), depth_table(source, rows)]
    return Section("depth", "Continuations by depth", f"The student's rollouts of round {at} were cut, and both models "
                   "went on from there. Where the teacher's line falls towards the student's, the prefix leads it "
                   "astray: what it says of later tokens is worth less.", blocks)


def accuracy_plot(source: Source, name: str, task: str, rows: Rows) -> Plot:
    """Both accuracies, with the intervals of `accuracy_by_depth`."""
    x = [row["depth"] for row in rows]
    drawn = [Line(x, [row[f"{role}_accuracy"] for row in rows], color, style,
                  low=[row[f"{role}_accuracy_low"] for row in rows],
                  high=[row[f"{role}_accuracy_high"] for row in rows])
             for role, color, style in (("student", "blue", "solid"), ("teacher", "orange", "dashed"))]
    frame = Frame("tokens kept", "of continuations", percent=True, whole_x=True, bounds=(0, 1), inside=(0,))
    return Plot(f"{task}: right in the end", lines(name, frame, drawn),
                "Their distance is what the teacher can still add from here.", source.command("accuracy_by_depth"),
                [Key("student, with its 95 % interval", "blue"), Key("teacher", "orange", "dashed")])


def turned_plot(source: Source, name: str, task: str, rows: Rows) -> Plot:
    """How often a continuation ends otherwise than the rollout did."""
    x = [row["depth"] for row in rows]
    shown = [("teacher_wrong_to_right", "teacher rights a wrong one", "orange", "dashed"),
             ("student_wrong_to_right", "student rights it", "blue", "solid"),
             ("teacher_right_to_wrong", "teacher spoils a right one", "red", "dotted")]
    frame = Frame("tokens kept", "of continuations", percent=True, whole_x=True, bounds=(0, 1), inside=(0,))
    return Plot(f"{task}: verdicts that turn", lines(name, frame, [
        Line(x, [row[column] for row in rows], color, style) for column, _, color, style in shown]),
        "Continuations of rollouts that ended wrong and come out right, and the reverse.",
        source.command("accuracy_by_depth"), [Key(label, color, style) for _, label, color, style in shown])


def depth_table(source: Source, rows: Rows) -> Table:
    columns = ["task", "depth", "rollouts", "student (95 %)", "teacher (95 %)", "advantage", "ended wrong",
               "student rights", "teacher rights", "ended right", "student spoils", "teacher spoils"]
    cells = [[on_one_line(row["task"]), count(row["depth"]), count(row["rollouts"]), *[
                 interval(row[f"{role}_accuracy"], row[f"{role}_accuracy_low"], row[f"{role}_accuracy_high"])
                 for role in ("student", "teacher")],
              percent(row["continuation_advantage"]), count(row["wrong_rollouts"]),
              percent(row["student_wrong_to_right"]), percent(row["teacher_wrong_to_right"]),
              count(row["right_rollouts"]), percent(row["student_right_to_wrong"]),
              percent(row["teacher_right_to_wrong"])] for row in rows]
    return Table(columns, cells, source.command("accuracy_by_depth"), "Intervals (Wilson) count rollouts.",
                 frozenset(range(1, len(columns))), folded=True)
