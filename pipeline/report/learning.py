"""Whether the student learns: held-out accuracy, and what each optimizer step did."""

from pipeline.report.asked import Rows, Source
from pipeline.report.document import Block, Key, Note, Plot, Plots, Section, Table
from pipeline.report.plots import Frame, Level, Line, lines
from pipeline.report.text import count, interval, number, on_one_line, percent

_BENCHMARKS = 6
"""So many benchmarks get plots; all are in the table."""
_LONG = 14
"""Rows from which a table is folded."""
_MARKED_ROUNDS = 16


def accuracy_section(source: Source) -> Section:
    """avg@k and pass@k by checkpoint, against the start and the teacher."""
    rows = accuracy_rows(source)
    if not rows:
        return Section("accuracy", "Held-out accuracy", "", [Note(why_no_accuracy(source))])
    blocks: list[Block] = []
    if source.number is None:
        blocks.append(Plots(accuracy_plots(source, rows)))
    elif not any(row["role"] == "student" for row in rows):
        blocks.append(Note("The student that this round made is not graded, or not yet."))
    text = ("avg@k is the share of right answers, pass@k the share of problems with a right answer among k. Intervals "
            "are of 95 % (Wilson) and count problems.")
    return Section("accuracy", "Held-out accuracy", text, [*blocks, accuracy_table(source, rows)])


def accuracy_rows(source: Source) -> Rows:
    """Of the run; of a round together with the start and the teacher, which round 0 grades."""
    rows = source.rows("accuracy")
    if source.number:
        rows = [row for row in source.rows_of("accuracy", 0) if row["role"] != "student"] + rows
    return rows


def why_no_accuracy(source: Source) -> str:
    if source.at("config.evaluation") is None:
        return "Nothing was graded: the run's config has no [evaluation]."
    return "Nothing is graded yet: the evaluate stage has not finished a shard here."


def accuracy_plots(source: Source, rows: Rows) -> list[Plot]:
    names = list(dict.fromkeys(row["task"] for row in rows))
    found = []
    for index, name in enumerate(names[:_BENCHMARKS]):
        of_task = [row for row in rows if row["task"] == name]
        found.append(accuracy_plot(source, f"avg-{index}", f"{on_one_line(name)}: avg@k", of_task, "avg_at_k",
                                   "of answers"))
        if len(names) <= 2:
            found.append(accuracy_plot(source, f"pass-{index}", f"{on_one_line(name)}: pass@k", of_task, "pass_at_k",
                                       "of problems"))
    return found + recovery_plot(source)


def accuracy_plot(source: Source, name: str, title: str, rows: Rows, column: str, unit: str) -> Plot:
    """The start is checkpoint 0, the student after round n is checkpoint n + 1."""
    graded = [row for row in rows if row["role"] == "start"] + [row for row in rows if row["role"] == "student"]
    x = [0 if row["role"] == "start" else row["round"] + 1 for row in graded]
    line = Line(x, [row[column] for row in graded], "blue", low=[row[f"{column}_low"] for row in graded],
                high=[row[f"{column}_high"] for row in graded])
    levels = [Level(row[column], f"{role} {percent(row[column])}", color, style)
              for role, color, style in (("start", "grey", "dotted"), ("teacher", "orange", "dashed"))
              for row in rows if row["role"] == role]
    frame = Frame("checkpoint (0 began the run)", unit, percent=True, whole_x=True, bounds=(0, None))
    return Plot(title, lines(name, frame, [line], levels),
                "Learning shows as a line that leaves the start's level for the teacher's, by more than its band.",
                source.command("accuracy"), [Key("student, with its 95 % interval", "blue")])


def recovery_plot(source: Source) -> list[Plot]:
    rows = [row for row in source.rounds() if row["gap_recovery"] is not None]
    if not rows:
        return []
    line = Line([row["round"] + 1 for row in rows], [row["gap_recovery"] for row in rows], "blue")
    frame = Frame("checkpoint (0 began the run)", "share of the way", whole_x=True, inside=(0, 1))
    return [Plot("Gap recovery", lines("recovery", frame, [line], [Level(1, "teacher", "orange"),
                                                                   Level(0, "start", "grey", "dotted")]),
                 "How much of the way from the start's avg@k to the teacher's the student has made; mean over "
                 "benchmarks. Above 1 it beats its teacher.", source.command("rounds"))]


def accuracy_table(source: Source, rows: Rows) -> Table:
    columns = ["benchmark", "model", "problems", "k", "avg@k (95 %)", "pass@k (95 %)", "cut off"]
    order = {"start": 0, "student": 1, "teacher": 2}
    names = {"start": "start", "teacher": "teacher"}
    cells = [[on_one_line(row["task"]), names.get(row["role"], f"student after round {row['round']}"),
              count(row["problems"]), count(row["k"]),
              interval(row["avg_at_k"], row["avg_at_k_low"], row["avg_at_k_high"]),
              interval(row["pass_at_k"], row["pass_at_k_low"], row["pass_at_k_high"]), percent(row["truncation_rate"])]
             for row in sorted(rows, key=lambda row: (row["task"], order.get(row["role"], 1), row["round"]))]
    return Table(columns, cells, source.command("accuracy"), numeric=frozenset(range(2, 7)), folded=len(cells) > _LONG)


# --- optimizer steps ---


def training_section(source: Source) -> Section:
    """Reverse KL, loss and what the off-policy checks say, per optimizer step."""
    rows = source.rows("steps")
    if not rows:
        return Section("training", "Training", "", [Note("No optimizer steps yet: the train stage has not finished "
                                                         "here.")])
    on_plots = "One point per optimizer step."
    if marks(rows):
        on_plots += " Where faint lines stand a round begins, from data that the student of that moment wrote."
    plots = [step_plot(source, rows, *each) for each in STEP_PLOTS if any(row[each[0]] is not None for row in rows)]
    blocks = [Plots(plots), *closing_tables(source), training_table(source)]
    return Section("training", "Training", "", blocks, on_plots)


def training_table(source: Source) -> Table:
    """What the view `rounds` says of the steps."""
    rows = [row for row in source.rounds() if row["steps"]]
    cells = [[str(row["round"]), count(row["steps"]), number(row["opd_reverse_kl"], 4), number(row["loss"], 4),
              number(row["drift"], 4), number(row["ess"], 4), count(row["staleness"])] for row in rows]
    return Table(["round", "steps", "reverse KL", "loss", "largest drift", "smallest ESS", "staleness"], cells,
                 source.command("rounds"), "KL, loss and drift in nats; staleness in optimizer steps.",
                 frozenset(range(1, 7)), folded=True)


STOPPED = {"done": "all data used", "drift_fuse": "drift fuse", "age_cap": "age cap"}
"""Why a round's training ended, for people."""


def closing_tables(source: Source) -> list[Table]:
    """How each round's training ended and how its final student does; no table where no round says so."""
    rows = [row for row in source.rounds() if row["stopped"]]
    cells = [[str(row["round"]), count(row["steps"]), STOPPED.get(row["stopped"], row["stopped"]),
              number(row["closing_teacher_kl"], 4), number(row["closing_opd_reverse_kl"], 4),
              number(row["closing_student_entropy"]), number(row["closing_student_mass"]),
              percent(row["closing_topk_left"]), number(row["closing_drift"], 4), number(row["closing_ess"])]
             for row in rows]
    table = Table(["round", "steps", "ended by", "KL to the teacher", "reverse KL", "entropy", "mass on the top-K",
                   "top-k left", "drift", "ESS"], cells, source.command("rounds"),
                  "The final student of each round on a fixed sample of the round's positions. A drift fuse that ends "
                  "many rounds asks for smaller rounds or a lower learning rate; top-k left is the share of its top-k "
                  "that the cache does not have.", frozenset({1, *range(3, 10)}), folded=len(rows) > _LONG)
    return [table] if rows else []


MEANS = ("opd_reverse_kl", "loss")
"""Columns of steps of which `rounds` has the mean."""
CLOSING = ("drift", "ess", "teacher_kl", "student_entropy", "topk_left")
"""Columns of steps that `rounds` has once more, after the last step."""
STEP_PLOTS = [
    ("opd_reverse_kl", "Reverse KL", "nats", "blue",
     "Mean of log p − log q on the sampled tokens, p the student, q the teacher, on a fixed 1/32 of the positions. A "
     "step says little; the mean of a round should fall."),
    ("loss", "Loss", "nats", "teal",
     "What is optimised, per unmasked token. Batches differ: look at the trend."),
    ("grad_norm", "Gradient norm", "l2, before clipping", "plum",
     "A jump here that the loss shows as well points to the round's data; look at its worst tokens."),
    ("drift", "Drift within the round", "nats", "orange",
     "KL from the student that wrote the round to the one being trained. It starts at 0 each round; growth means that "
     "the data ages."),
    ("ess", "Effective sample size", "share", "gold",
     "1 while the data is on-policy. Far below 1 the round is too long for what it has to teach."),
    ("teacher_kl", "KL to the teacher", "nats", "blue",
     "KL from the student being trained to the teacher, on the teacher's top-K and one bucket for the rest."),
    ("student_entropy", "Student's entropy", "nats", "teal",
     "Over the whole vocabulary. A student that falls quickly here grows too sure."),
    ("topk_left", "Top-k that left the cache", "share", "rose",
     "Share of the student's present top-k that the cached one lacks: what a loss on the cached support cannot see."),
    ("learning_rate", "Learning rate", "", "grey", "As scheduled: linear warm-up over the whole run."),
]


def step_plot(source: Source, rows: Rows, column: str, title: str, unit: str, color: str, caption: str) -> Plot:
    drawn = [Line([row["step"] for row in rows], [row[column] for row in rows], color)]
    keys = []
    if column in MEANS:
        drawn.append(round_means(source, rows, column))
        keys = [Key("step", color), Key("mean of the round", "ink")]
    elif column in CLOSING and any(row[f"closing_{column}"] is not None for row in source.rounds()):
        drawn.append(closing_points(source, rows, column))
        keys = [Key("before each step", color), Key("after the round", "ink")]
    floor = None if column in ("opd_reverse_kl", "loss") else 0
    ceiling = 1 if column == "ess" else None
    frame = Frame("optimizer step", unit, whole_x=True, marks=marks(rows), bounds=(floor, ceiling),
                  inside=(1,) if column == "ess" else ())
    return Plot(title, lines(f"step-{column}", frame, drawn), caption, source.command("steps"), keys)


def round_means(source: Source, rows: Rows, column: str) -> Line:
    """The view `rounds`' mean of the column, over the steps of each round."""
    means = {row["round"]: row[column] for row in source.rounds()}
    x: list[float] = []
    y: list[float | None] = []
    for each in dict.fromkeys(row["round"] for row in rows):
        of_round = [row["step"] for row in rows if row["round"] == each]
        x += [of_round[0] - 0.4, of_round[-1] + 0.4, of_round[-1] + 0.4]
        y += [means[each], means[each], None]
    return Line(x, y, "ink", dots=False)


def closing_points(source: Source, rows: Rows, column: str) -> Line:
    """The column after each round's last step: points of their own while they are few."""
    last = {row["round"]: row["step"] for row in rows}
    found = [(last[row["round"]] + 0.5, row[f"closing_{column}"]) for row in source.rounds() if row["round"] in last]
    if len(found) <= _MARKED_ROUNDS:
        found = [each for x, y in found for each in ((x, y), (x, None))]
    return Line([x for x, _ in found], [y for _, y in found], "ink")


def marks(rows: Rows) -> list[float]:
    """Where rounds begin, half a step before their first step; none where they would be a grating."""
    starts = [row["step"] - 0.5 for before, row in zip(rows, rows[1:], strict=False) if row["round"] != before["round"]]
    return starts if len(starts) <= _MARKED_ROUNDS else []
