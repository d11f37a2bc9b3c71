"""What a run spends: lengths of responses, tokens masked, seconds and bytes of each stage."""

from typing import Any

from pipeline.report.asked import Rows, Source
from pipeline.report.distance import by_round
from pipeline.report.document import Block, Key, Note, Plot, Plots, Section, Table
from pipeline.report.plots import Frame, Line, lines, stacks
from pipeline.report.text import count, number, on_one_line, percent, seconds, size
from storage.layout import STAGES

_SOURCES = 3
"""Rounds that a row names as sources of teacher columns."""
_REASONS = 20
"""Rows of the table of masks; a detector may give a reason per token id."""
_REPEATED = "Repeated are 3-grams that occurred before in the same response; mean over responses."
_STAGE_COLORS = dict(zip(STAGES, ("grey", "blue", "teal", "moss", "rose", "gold", "orange", "plum"), strict=True))


def lengths_section(source: Source) -> Section:
    rows = source.rows("lengths_by_round")
    if not rows:
        return Section("lengths", "Lengths", "", [Note("No rollouts yet: the rollout stage has not finished a shard "
                                                       "here.")])
    columns = ["round", "rollouts", "shortest", "lower decile", "median", "mean", "upper decile", "longest", "cut off",
               "repeated"]
    repeated = {row["round"]: row["repeat_ratio"] for row in source.rounds()}
    cells = [[str(row["round"]), count(row["rollouts"]), count(row["shortest"]), number(row["lower_decile"], 0),
              number(row["median"], 0), number(row["mean_length"], 1), number(row["upper_decile"], 0),
              count(row["longest"]), percent(row["truncation_rate"]), percent(repeated[row["round"]])]
             for row in rows]
    table = Table(columns, cells, source.command("lengths_by_round"), f"In tokens. {_REPEATED}",
                  frozenset(range(1, 10)), folded=len(cells) > 1)
    blocks: list[Block] = [Plots(length_plots(source, rows)), table] if source.has_history else [table]
    return Section("lengths", "Lengths", "A response that is cut off at the token limit ends without an answer.",
                   blocks)


def length_plots(source: Source, rows: Rows) -> list[Plot]:
    x = [row["round"] for row in rows]
    median = Line(x, [row["median"] for row in rows], "blue", low=[row["lower_decile"] for row in rows],
                  high=[row["upper_decile"] for row in rows])
    longest = Line(x, [row["longest"] for row in rows], "grey", "dotted", dots=False)
    frame = Frame("round", "tokens", whole_x=True, bounds=(0, None), inside=(0,))
    found = [Plot("Length of responses", lines("lengths", frame, [median, longest]),
                  "The band holds the middle 80 %. Lengths that run up to the limit often are repetition.",
                  source.command("lengths_by_round"),
                  [Key("median, with its deciles", "blue"), Key("longest", "grey", "dotted")])]
    drawn = [("truncation_rate", "rollouts", "orange", "solid")]
    if any(row["evaluation_truncation_rate"] is not None for row in source.rounds()):
        drawn.append(("evaluation_truncation_rate", "held-out answers", "plum", "dashed"))
    found.append(by_round(source, "repetition", "Repetition", "of 3-grams", [("repeat_ratio", "", "rose", "solid")],
                          f"{_REPEATED} A student that begins to loop shows here before it shows in the lengths.",
                          percent=True, bounds=(0, 1), inside=(0, 0.01)))
    return [*found, by_round(source, "truncation", "Cut off at the limit", "of responses", drawn,
                             "Share of responses that reached the token limit.", percent=True, bounds=(0, 1),
                             inside=(0, 0.01))]


# --- masks ---


def masks_section(source: Source) -> Section:
    """What each mask touched."""
    shares = [row["masked_share"] for row in source.rounds() if row["masked_share"] is not None]
    if not shares:
        return Section("masks", "Masks", "", [Note("No mask yet: the mask stage has not finished a shard here.")])
    blocks: list[Block] = []
    if source.has_history and max(shares) > 0:
        blocks.append(Plots([by_round(source, "masked", "Masked tokens", "of tokens",
                                      [("masked_share", "", "plum", "solid")],
                                      "Share of tokens without weight in the loss.", percent=True, bounds=(0, 1),
                                      inside=(0, 0.01))]))
    rows = source.rows("masked_by_reason")
    blocks.append(reasons_table(source, rows) if rows else Note("No mask touched a token."))
    return Section("masks", "Masks", "", blocks)


def reasons_table(source: Source, rows: Rows) -> Table:
    """Reasons by how many tokens they touched, summed over rounds."""
    touched: dict[str, Rows] = {}
    for row in rows:
        touched.setdefault(row["reason"], []).append(row)
    ordered = sorted(touched.items(), key=lambda each: (-sum(row["tokens"] for row in each[1]), each[0]))
    cells = [[on_one_line(reason), count(sum(row["tokens"] for row in of_reason)),
              count(sum(row["masked"] for row in of_reason)), f"{of_reason[0]['round']} to {of_reason[-1]['round']}",
              percent(of_reason[-1]["share"])] for reason, of_reason in ordered[:_REASONS]]
    caption = "A token with two reasons counts under both. Masked are those whose weight came out 0."
    if len(ordered) > _REASONS:
        caption += f" {len(ordered) - _REASONS} more reasons touched fewer tokens."
    return Table(["reason", "tokens touched", "masked", "rounds", "share of the last of them"], cells,
                 source.command("masked_by_reason"), caption, frozenset({1, 2, 4}))


# --- time and space ---


def timings_section(source: Source) -> Section:
    """Wall time and bytes by stage."""
    rows = source.rows("timings_by_stage")
    if not rows:
        return Section("timings", "Time and space", "", [Note("No finished shard yet.")])
    blocks: list[Block] = [stages_table(source, rows), *reuse_tables(source)]
    if source.has_history:
        blocks.insert(0, Plots([stage_plot(source, rows, "seconds", "Time by stage"),
                                stage_plot(source, rows, "size_bytes", "Bytes by stage")]))
    return Section("timings", "Time and space", "Wall time of the shards, added up: shards that ran side by side took "
                                                "less. Checkpoints are not counted.", blocks)


def stages_table(source: Source, rows: Rows) -> Table:
    cells = []
    for stage in STAGES:
        of_stage = [row for row in rows if row["stage"] == stage]
        if of_stage:
            times = [row["seconds"] for row in of_stage if row["seconds"] is not None]
            total, all_rows = sum(times) if times else None, sum(row["rows"] for row in of_stage)
            timed_rows = sum(row["rows"] for row in of_stage if row["seconds"])
            cells.append([stage, count(sum(row["shards"] for row in of_stage)), seconds(total), count(all_rows),
                          number(timed_rows / total, 0) if total else number(None),
                          size(sum(row["size_bytes"] for row in of_stage))])
    where = "of this round" if source.number is not None else "of all rounds"
    return Table(["stage", "shards", "time", "rows", "rows per second", "bytes"], cells,
                 source.command("timings_by_stage"), f"Sums {where}.", frozenset(range(1, 6)))


def reuse_tables(source: Source) -> list[Table]:
    """Rounds that found teacher columns in the store; no table where none did."""
    rows = [row for row in source.rows("payload_reuse") if row["hits"]]
    cells = [[str(row["round"]), count(row["hits"]), count(row["misses"]), percent(row["hit_share"]),
              count(row["hit_tokens"]), ", ".join(map(origin, row["sources"][:_SOURCES]))
              + (f" and {len(row['sources']) - _SOURCES} more" if len(row["sources"]) > _SOURCES else "")]
             for row in rows]
    table = Table(["round", "found", "computed", "found of all", "tokens found", "from"], cells,
                  source.command("payload_reuse"), "Rollouts whose teacher columns lay in the store already, and those "
                  "that the teacher was asked for.", frozenset(range(1, 5)))
    return [table] if rows else []


def origin(reused: dict[str, Any]) -> str:
    """Where rollouts' teacher columns were found: a round of this run, or a manifest of another."""
    place = f"manifest {reused['manifest_id'][:8]}" if reused["round"] is None else f"round {reused['round']}"
    return f"{place} ({count(reused['rollouts'])})"


def stage_plot(source: Source, rows: Rows, column: str, title: str) -> Plot:
    numbers = list(dict.fromkeys(row["round"] for row in rows))
    present = [stage for stage in STAGES if any(row["stage"] == stage and row[column] for row in rows)]
    values = {(row["stage"], row["round"]): row[column] or 0 for row in rows}
    most = max(sum(values.get((stage, each), 0) for stage in present) for each in numbers)
    factor, unit = scaled(most) if column == "seconds" else scaled_bytes(most)
    parts = [([values.get((stage, each), 0) / factor for each in numbers], _STAGE_COLORS[stage]) for stage in present]
    caption = ("A stage that takes longer from round to round usually has longer responses to work on."
               if column == "seconds" else "What each round adds to the store, its checkpoint apart.")
    return Plot(title, stacks(f"stage-{column}", Frame("round", unit, whole_x=True, bounds=(0, None)), numbers, parts),
                caption, source.command("timings_by_stage"),
                [Key(stage, _STAGE_COLORS[stage], "box") for stage in present])


def scaled(most: float) -> tuple[float, str]:
    return (3600, "hours") if most > 3 * 3600 else (60, "minutes") if most > 300 else (1, "seconds")


def scaled_bytes(most: float) -> tuple[float, str]:
    return next(((factor, unit) for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if most > factor),
                (1, "bytes"))
