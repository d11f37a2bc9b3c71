"""How far the student is from its teacher: gap, rewards, support, overlap, entropy."""

from pipeline.report.asked import Rows, Source
from pipeline.report.document import Key, Note, Plot, Plots, Section, Table
from pipeline.report.plots import Frame, Level, Line, lines, steps
from pipeline.report.text import count, fixed, number, percent

_AGES = ("age0", "age1", "age2", "age3", "age4", "age5")
_FEWEST = 8
"""Buckets of fewer tokens are left out of plots: their means are noise."""
_LEAST_MASS = 0.85
"""Below it renormalised matching on the teacher's top-K barely learns."""
_BUCKET, _FIRST, _LAST = 0.25, -8.0, 4.0
"""Of the report `gap_histogram`."""


def spread(numbers: list[int], most: int = len(_AGES)) -> list[int]:
    """At most `most` of the rounds, evenly, first and last among them."""
    if len(numbers) <= most:
        return numbers
    return [numbers[round(index * (len(numbers) - 1) / (most - 1))] for index in range(most)]


def ages(numbers: list[int]) -> dict[int, str]:
    """Round -> colour, the newest the strongest."""
    newest = len(_AGES) - 1
    return {number: _AGES[newest - (len(numbers) - 1 - index) * newest // max(1, len(numbers) - 1)]
            for index, number in enumerate(numbers)}


def left_out(shown: list[int], all_rounds: list[int]) -> str:
    return "" if len(shown) == len(all_rounds) else f" {len(shown)} of {len(all_rounds)} rounds are drawn."


def distance_section(source: Source) -> Section:
    """Everything that the scores say."""
    if not any(row["tokens"] for row in source.rounds()):
        return Section("distance", "Student and teacher", "", [Note("No scores yet: the score stage has not finished "
                                                                    "a shard here.")])
    text = ("The gap of a token is log q − log p: what the teacher thinks of it less what the student thinks. Negative "
            "means that the teacher disagrees; it is also the token's reward.")
    plots = [*gap_plots(source), *reward_plots(source)]
    plots += position_plots(source) if source.number is not None else round_plots(source) if source.has_history else []
    tables = [scores_table(source)] if source.number is None else [along_table(source), histogram_table(source)]
    return Section("distance", "Student and teacher", text, [Plots(plots), *tables])


def scores_table(source: Source) -> Table:
    """What the view `rounds` says of the scores."""
    columns = {"positive_reward_share": "positive rewards", "reward_auroc": "AUROC", "reverse_kl": "reverse KL",
               "gap_lower_decile": "gap, lower decile",
               "teacher_mass": "teacher's mass", "student_mass": "student's mass",
               "not_in_topk_ratio": "outside top-K", "overlap_ratio": "overlap",
               "overlap_mass_student": "student on overlap", "overlap_mass_teacher": "teacher on overlap",
               "overlap_token_advantage": "advantage", "student_entropy": "student's entropy",
               "teacher_entropy": "teacher's entropy", "entropy_gap": "entropy gap"}
    rows = [[str(row["round"]), *[number(row[column]) for column in columns]] for row in source.rounds()]
    return Table(["round", *columns.values()], rows, source.command("rounds"), "Shares of 1; KL, gaps, advantage and "
                 "entropies in nats.", frozenset(range(1, len(columns) + 1)), folded=True)


def along_table(source: Source) -> Table:
    rows = [[str(row["first_position"]), count(row["tokens"]), number(row["reverse_kl"]), number(row["mean_gap"]),
             number(row["gap_lower_decile"]), number(row["student_entropy"]), number(row["teacher_entropy"]),
             number(row["student_mass"])] for row in source.rows("gap_along_response")]
    return Table(["from position", "tokens", "reverse KL", "mean gap", "lower decile", "student's entropy",
                  "teacher's entropy", "student's mass"], rows, source.command("gap_along_response"),
                 "Along the response. KL, gaps and entropies in nats.", frozenset(range(8)), folded=True)


def histogram_table(source: Source) -> Table:
    rows = [[fixed(row["from_gap"], 2), count(row["tokens"]), percent(row["share"])]
            for row in source.rows("gap_histogram")]
    return Table(["gap from", "tokens", "share"], rows, source.command("gap_histogram"), "Distribution of the gap, in "
                 "nats.", frozenset(range(3)), folded=True)


# --- along the response ---


def gap_plots(source: Source) -> list[Plot]:
    """KL, and mean and lower decile of the gap, by position, a line per round."""
    rows = well_filled(source.compared("gap_along_response"))
    return [along(source, rows, "reverse_kl", "Reverse KL along the response", "nats",
                  "KL(student || teacher) of the student's top choices and the rest as one: what is left to learn at "
                  "each depth."),
            along(source, rows, "mean_gap", "Mean gap along the response", "nats",
                  "Where in a response the models part. Lines of later rounds should lie nearer to 0."),
            along(source, rows, "gap_lower_decile", "Lower decile of the gap", "nats",
                  "A tenth of the tokens lies below. A line that sinks to the right says that long responses leave "
                  "the teacher's ground.")]


def well_filled(rows: Rows) -> Rows:
    """Buckets whose means say something; all of them where none does."""
    return [row for row in rows if row["tokens"] >= _FEWEST] or rows


def along(source: Source, rows: Rows, column: str, title: str, unit: str, caption: str) -> Plot:
    everything = list(dict.fromkeys(row["round"] for row in rows))
    shown = spread(everything)
    colors = ages(shown)
    drawn = [Line(*middles(rows, number, column), colors[number], dots=False) for number in shown]
    widths = sorted({row["positions"] for row in rows})
    fewest = (f" Buckets of {', '.join(map(str, widths))} positions; those of fewer than {_FEWEST} tokens are left "
              f"out.{left_out(shown, everything)}")
    frame = Frame("position in the response", unit, whole_x=True)
    return Plot(title, lines(f"along-{column}", frame, drawn), caption + fewest, source.command("gap_along_response"),
                [Key(f"round {number}", colors[number]) for number in shown])


def middles(rows: Rows, number: int, column: str) -> tuple[list[float], list[float]]:
    of_round = [row for row in rows if row["round"] == number]
    return ([row["first_position"] + (row["positions"] - 1) / 2 for row in of_round],
            [row[column] for row in of_round])


def position_plots(source: Source) -> list[Plot]:
    """For one round: what else changes along a response."""
    rows = well_filled(source.rows("gap_along_response"))
    x = [row["first_position"] + (row["positions"] - 1) / 2 for row in rows]
    command = source.command("gap_along_response")

    def drawn(column: str, color: str, style: str = "solid") -> Line:
        return Line(x, [row[column] for row in rows], color, style, dots=False)

    frame = Frame("position in the response", "nats", whole_x=True, bounds=(0, None))
    entropy = Plot("Entropy along the response",
                   lines("along-entropy", frame, [drawn("student_entropy", "blue"),
                                                  drawn("teacher_entropy", "orange", "dashed")]),
                   "Where a student is surer than its teacher it has settled on something the teacher has not.",
                   command, [Key("student", "blue"), Key("teacher", "orange", "dashed")])
    mass_frame = Frame("position in the response", "probability mass", whole_x=True, bounds=(0, 1.0005), inside=(1,))
    mass = Plot("Support along the response",
                lines("along-mass", mass_frame, [drawn("student_mass", "blue")], mass_levels(source)),
                "The student's mass on the teacher's top-K: what a loss on that support can reach.", command,
                [Key("student's mass on the teacher's top-K", "blue")])
    tokens = Plot("Tokens along the response",
                  lines("along-tokens", Frame("position in the response", "tokens per bucket", whole_x=True,
                                              bounds=(0, None)), [drawn("tokens", "teal")]),
                  "How many tokens stand behind each bucket of the plots above.", command)
    return [entropy, mass, tokens]


# --- rewards ---


def reward_plots(source: Source) -> list[Plot]:
    rows = source.compared("gap_histogram")
    everything = list(dict.fromkeys(row["round"] for row in rows))
    shown = spread(everything, 3)
    colors = ages(shown)
    buckets = round((_LAST - _FIRST) / _BUCKET) + 1
    shares = {number: [0.0] * buckets for number in shown}
    for row in rows:
        if row["round"] in shares:
            shares[row["round"]][round((row["from_gap"] - _FIRST) / _BUCKET)] = row["share"]
    edges = [_FIRST + _BUCKET * index for index in range(buckets + 1)]
    histogram = Plot("Distribution of the gap",
                     steps("gap-histogram", Frame("gap, nats", "of tokens", log_y=True, percent=True), edges,
                           [(shares[number], colors[number]) for number in shown]),
                     "On a logarithmic scale. The left tail are tokens that the teacher would not have written: it "
                     "should thin out. The outermost columns hold everything beyond." + left_out(shown, everything),
                     source.command("gap_histogram"), [Key(f"round {number}", colors[number]) for number in shown])
    return [histogram]


# --- by round ---


def by_round(source: Source, name: str, title: str, unit: str, drawn: list[tuple[str, str, str, str]], caption: str,
             levels: list[Level] | None = None, **frame) -> Plot:
    """Columns of `rounds` as lines; `drawn` holds column, label, colour, style."""
    rows = source.rounds()
    x = [row["round"] for row in rows]
    found = [Line(x, [row[column] for row in rows], color, style) for column, _, color, style in drawn]
    keys = [Key(label, color, style) for _, label, color, style in drawn] if len(drawn) > 1 else []
    return Plot(title, lines(name, Frame("round", unit, whole_x=True, **frame), found, levels or ()), caption,
                source.command("rounds"), keys)


def mass_levels(source: Source) -> list[Level]:
    """The warning line of a loss that is renormalised over the teacher's top-K."""
    if source.at("config.objective.type") != "teacher_topk_lsm":
        return []
    return [Level(_LEAST_MASS, f"LSM learns little below {_LEAST_MASS}", "red", "dotted")]


def round_plots(source: Source) -> list[Plot]:
    """A point per round."""
    return [
        by_round(source, "positive", "Positive rewards", "of tokens",
                 [("positive_reward_share", "", "teal", "solid")],
                 "Share of sampled tokens that the teacher finds likelier than the student does.", percent=True,
                 bounds=(0, 1)),
        by_round(source, "auroc", "Reward and correctness", "AUROC",
                 [("reward_auroc", "", "plum", "solid")],
                 "Chance that a right rollout has a higher mean gap than a wrong one. Near 0.5 the teacher's reward "
                 "does not tell right from wrong; rounds without both have no point.",
                 [Level(0.5, "chance", "grey", "dotted")], bounds=(0, 1.0005), inside=(0.4, 0.6)),
        by_round(source, "mass", "Support", "probability mass",
                 [("teacher_mass", "teacher's mass on its top-K", "orange", "dashed"),
                  ("student_mass", "student's mass on it", "blue", "solid")],
                 "How much of each model the teacher's top-K covers. What lies outside, a loss on that support does "
                 "not see.", mass_levels(source), inside=(1,), bounds=(0, 1.0005)),
        by_round(source, "outside", "Sampled outside the top-K", "of tokens",
                 [("not_in_topk_ratio", "", "plum", "solid")],
                 "Share of sampled tokens that are not among the teacher's top-K.", percent=True, bounds=(0, 1)),
        by_round(source, "overlap", "Overlap", "share",
                 [("overlap_ratio", "shared entries of the top-k", "teal", "solid"),
                  ("overlap_mass_student", "student's mass on them", "blue", "solid"),
                  ("overlap_mass_teacher", "teacher's mass on them", "orange", "dashed")],
                 "What both models count among their likeliest tokens. A rising share of entries is the sign of "
                 "distillation that works.", bounds=(0, 1.0005)),
        by_round(source, "advantage", "Overlap advantage", "nats",
                 [("overlap_token_advantage", "", "plum", "solid")],
                 "How differently the two rank what they share; 0 means alike.", bounds=(None, 0.0005), inside=(0,)),
        by_round(source, "entropy", "Entropy", "nats",
                 [("student_entropy", "student", "blue", "solid"), ("teacher_entropy", "teacher", "orange", "dashed"),
                  ("entropy_gap", "mean difference per token", "grey", "dotted")],
                 "How unsure each model is of the next token, on the student's text. A student that falls below its "
                 "teacher grows too sure.", bounds=(0, None)),
    ]
