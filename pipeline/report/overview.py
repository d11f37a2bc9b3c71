"""The head of a report: what the run is, the numbers that matter most, and a row per round."""

from pathlib import PurePosixPath
from typing import Any

from pipeline.report.asked import Rows, Source
from pipeline.report.document import Note, Section, Table, Tile
from pipeline.report.health import figures
from pipeline.report.text import MISSING, count, number, on_one_line, percent, place_of_model
from storage import sqlfiles

_VERSIONS = ("opd-rounds", "torch", "transformers", "vllm", "duckdb", "python")


def facts(source: Source) -> list[tuple[str, str]]:
    """What run.json says of the run; what it does not say is left out."""
    found = [("student", model(source, "student")), ("teacher", model(source, "teacher")),
             ("objective", objective(source)), ("kept per token", kept(source)), ("sampling", sampling(source)),
             ("prompts", prompts(source)), ("masks", masks(source)), ("training", training(source)),
             ("evaluation", evaluation(source)), ("branch of", branch(source)), ("seed", source.at("config.seed")),
             ("versions", versions(source))]
    return [(name, on_one_line(str(value), 300)) for name, value in found if value is not None]


def model(source: Source, side: str) -> str | None:
    path = source.at(f"{side}.path") or source.at(f"config.{side}.path")
    if path is None:
        return None
    parts = [place_of_model(path), source.at(f"{side}.revision") and f"revision {source.at(f'{side}.revision')[:12]}",
             source.at(f"{side}.fingerprint") and f"fingerprint {source.at(f'{side}.fingerprint')[:12]}"]
    return ", ".join(part for part in parts if part)


def objective(source: Source) -> str | None:
    kind, k = source.at("config.objective.type"), source.at("config.objective.k")
    return f"{kind}, k = {k}" if kind and k else kind


def kept(source: Source) -> str | None:
    teacher, student = source.at("config.score.teacher_top_k"), source.at("config.score.student_top_k")
    return None if teacher is None else f"teacher's top-{teacher} (K), student's top-{student} (k)"


def sampling(source: Source) -> str | None:
    rollout = source.at("config.rollout")
    if not rollout:
        return None
    return (f"top-p {rollout['top_p']:g}, temperature {rollout['temperature']:g}, {rollout['samples']} samples of up "
            f"to {rollout['max_new_tokens']:,} tokens")


def prompts(source: Source) -> str | None:
    section = source.at("config.prompts")
    if not section:
        return None
    kind = section["source"]
    path = kind.get("name") or kind.get("generator") or PurePosixPath(kind.get("path", "")).name
    return f"{section['per_round']} per round from {path} ({kind['type']}), task {section['task']}"


def masks(source: Source) -> str | None:
    listed = source.at("config.mask")
    if listed is None:
        return None
    return ", ".join(f"SQL {PurePosixPath(each['file']).stem}" if each["type"] == "sql" else each["type"]
                     for each in listed) or "none"


def training(source: Source) -> str | None:
    train = source.at("config.train")
    if not train:
        return None
    epochs = f", {train['epochs']} epochs" if train["epochs"] > 1 else ""
    return f"learning rate {train['learning_rate']:g}, {train['rollouts_per_step']} rollouts per step{epochs}"


def evaluation(source: Source) -> str | None:
    section = source.at("config.evaluation")
    if not section:
        return None
    asked = ", ".join(f"{each['name']} × {each['samples']}" for each in section["benchmark"])
    every = "" if section["every"] == 1 else f", every {section['every']} rounds"
    return f"{asked} answers per problem{every}"


def branch(source: Source) -> str | None:
    parent = source.at("branch")
    return f"{parent.get('run')} round {parent.get('round')}" if isinstance(parent, dict) else None


def versions(source: Source) -> str | None:
    found = source.at("versions") or {}
    return ", ".join(f"{name} {found[name]}" for name in _VERSIONS if name in found) or None


# --- what stands at the top ---


def state(source: Source) -> tuple[str, bool]:
    """One line, and whether a round in progress is part of the report."""
    done = [number for number, committed in source.committed.items() if committed]
    open_rounds = [number for number, committed in source.committed.items() if not committed]
    if source.number is not None:
        return (("in progress", True) if source.number in open_rounds else ("committed", False))
    text = f"{len(done)} {'round' if len(done) == 1 else 'rounds'} committed"
    return (f"{text}, round {open_rounds[0]} in progress" if open_rounds else text), bool(open_rounds)


def tiles(source: Source) -> list[Tile]:
    """The last value of each number that matters, beside what it began with."""
    rows = source.rounds()
    if not rows:
        return []
    shown = [accuracy_tile(rows), recovery_tile(rows)]
    shown += [changed_tile(rows, "opd_reverse_kl", "reverse KL", "nats"),
              changed_tile(rows, "overlap_ratio", "top-k overlap", "of 1"), health_tile(source)]
    shown += [Tile("tokens learnt from", count(sum(row["tokens"] for row in here(source, rows))),
                   f"{count(sum(row['rollouts'] for row in here(source, rows)))} rollouts")]
    return [tile for tile in shown if tile]


def here(source: Source, rows: Rows) -> Rows:
    return rows if source.number is None else [row for row in rows if row["round"] == source.number]


def last_of(rows: Rows, column: str) -> dict[str, Any] | None:
    return next((row for row in reversed(rows) if row[column] is not None), None)


def accuracy_tile(rows: Rows) -> Tile | None:
    row = last_of(rows, "avg_at_k")
    if row is None:
        return None
    beside = [f"{name} {percent(row[column])}" for name, column in (("start", "start_avg_at_k"),
                                                                   ("teacher", "teacher_avg_at_k"))
              if row[column] is not None]
    return Tile(f"avg@k, round {row['round']}", percent(row["avg_at_k"]), ", ".join(beside))


def recovery_tile(rows: Rows) -> Tile | None:
    row = last_of(rows, "gap_recovery")
    return row and Tile("gap recovery", number(row["gap_recovery"], 2), "of the way from the start to the teacher")


def health_tile(source: Source) -> Tile | None:
    """Of the last round that has figures."""
    rows = figures(source)
    if not rows:
        return None
    of_last = [row for row in rows if row["round"] == rows[-1]["round"]]
    amiss = [row["figure"] for row in of_last if not row["holds"]]
    return Tile(f"health, round {rows[-1]['round']}", f"{len(of_last) - len(amiss)} of {len(of_last)}",
                f"{', '.join(amiss)} out of bounds" if amiss else "figures within their bounds")


def changed_tile(rows: Rows, column: str, label: str, unit: str) -> Tile | None:
    last = last_of(rows, column)
    if last is None:
        return None
    first = next(row for row in rows if row[column] is not None)
    note = unit if first is last else f"{unit}, in round {first['round']} {number(first[column])}"
    return Tile(label, number(last[column]), note)


# --- sections ---


def progress_notes(source: Source) -> list[Note]:
    """What a round in progress has so far."""
    number = next((each for each, committed in source.committed.items() if not committed), None)
    if not source.planned or number is None:
        return []
    done = {row["stage"]: row["shards"] for row in source.rows_of("timings_by_stage", number)}
    parts = [f"{stage} {done.get(stage, 0)} of {shards}" for stage, shards in source.planned.items() if shards]
    return [Note(f"Round {number} is in progress. Finished shards: {', '.join(parts)}. Its figures are of these; what "
                 "a later stage would show is missing.")]


def rounds_section(source: Source) -> Section:
    """A row per round."""
    columns = ["round", "manifest", "rollouts", "tokens", "reward", "avg@k", "gap recovery", "reverse KL",
               "loss", "mean gap", "overlap", "student mass", "masked", "cut off"]
    rows = [[str(row["round"]), row["manifest_id"][:8] if row["manifest_id"] else "in progress",
             count(row["rollouts"]), count(row["tokens"]), percent(row["accuracy"]), percent(row["avg_at_k"]),
             number(row["gap_recovery"], 2), number(row["opd_reverse_kl"]), number(row["loss"]),
             number(row["mean_gap"]), number(row["overlap_ratio"]), number(row["student_mass"]),
             percent(row["masked_share"]), percent(row["truncation_rate"])] for row in source.rounds()]
    caption = ("Reward is the share of right answers among the rollouts that have a reference; avg@k is of held-out "
               "problems, after the round. KL, loss and gap are in nats per token.")
    table = Table(columns, rows, source.command("rounds"), caption, frozenset(range(2, len(columns))))
    blocks = [*progress_notes(source), table] if rows else [Note("No round has been planned yet.")]
    if len(rows) == 1:  # too few for lines
        blocks.append(metrics_table(source, source.rounds()[0], {}))
    return Section("rounds", "Rounds", "", blocks)


def numbers_section(source: Source) -> Section:
    """Every metric of one round, beside the round before."""
    by_round = {row["round"]: row for row in source.rounds()}
    this, before = by_round[source.number], by_round.get(source.number - 1, {})
    return Section("numbers", "Numbers", "", [*progress_notes(source), metrics_table(source, this, before)])


def metrics_table(source: Source, this: dict[str, Any], before: dict[str, Any]) -> Table:
    """A row per metric that either round has."""
    meanings = sqlfiles.load("views", "rounds").columns
    names = [name for name in this if name not in ("run", "round", "committed", "manifest_id")
             and (this[name] is not None or before.get(name) is not None)]
    columns = ["metric", f"round {this['round']}", *([f"round {before['round']}"] if before else []), "meaning"]
    rows = [[name, *[metric(meanings[name], row[name]) for row in (this, before) if row], meanings[name]]
            for name in names]
    manifest = this["manifest_id"] or "none yet, the round is in progress"
    return Table(columns, rows, source.command("rounds"), f"Manifest of the round: {manifest}.",
                 frozenset(range(1, len(columns) - 1)))


def metric(meaning: str, value: Any) -> str:
    """A value in the unit that the view's header gives it."""
    if value is None:
        return MISSING
    if isinstance(value, str):
        return on_one_line(value)
    return count(value) if meaning.startswith(("count", "optimizer steps")) else number(value, 4)
