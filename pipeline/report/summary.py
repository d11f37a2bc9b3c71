"""A round in a few statistics, for places that must not hold what models or data sets wrote."""

from typing import Any

from pipeline.report.asked import open_round
from pipeline.report.markdown import cell, table_lines
from pipeline.report.text import MISSING, count, number, percent
from storage.objects import ObjectStore

_SHOWN = [("avg_at_k", "held-out avg@k", percent), ("start_avg_at_k", "avg@k of the start", percent),
          ("teacher_avg_at_k", "avg@k of the teacher", percent), ("gap_recovery", "gap recovery", number),
          ("accuracy", "right rollouts", percent), ("reward_auroc", "AUROC of the mean gap", number),
          ("opd_reverse_kl", "reverse KL, nats", number), ("stopped", "training ended by", str),
          ("closing_teacher_kl", "KL to the teacher at the end, nats", number), ("loss", "loss, nats", number),
          ("mean_gap", "mean gap, nats", number), ("overlap_ratio", "top-k overlap", number),
          ("student_mass", "student's mass on the teacher's top-K", number),
          ("positive_reward_share", "positive rewards", percent), ("masked_share", "masked tokens", percent),
          ("mean_length", "mean length, tokens", lambda value: number(value, 1)),
          ("truncation_rate", "cut off", percent), ("repeat_ratio", "repeated 3-grams", percent),
          ("prompts", "prompts", count), ("rollouts", "rollouts", count), ("tokens", "tokens", count),
          ("steps", "optimizer steps", count)]
"""Column of `rounds`, its name for people, its format."""


def summary(store: ObjectStore, run: str, number: int) -> dict[str, Any]:
    """{"title", "markdown", "table"}: one row per metric of round `number`, beside the round before.

    Statistics only: no text of a model, of a data set or of a mask. Raises UserError if there is no such round.
    """
    source = open_round(store, run, number)
    by_round = {row["round"]: row for row in source.rounds()}
    this, before = by_round[number], by_round.get(number - 1, {})
    table = [{"metric": label, "round": shown(this[column]),
              "before": MISSING if before.get(column) is None else shown(before[column])}
             for column, label, shown in _SHOWN if this[column] is not None]
    state = f"manifest {this['manifest_id'][:12]}" if this["manifest_id"] else "in progress"
    lines = [f"## {cell(run)}, round {number}", "", f"{state}.", "",
             *table_lines(["metric", f"round {number}", f"round {number - 1}" if before else "before"],
                          [list(row.values()) for row in table], {1, 2}),
             "", f"Ask the same: `{source.command('rounds')}`"]
    return {"title": f"{run} round {number}", "markdown": "\n".join(lines) + "\n", "table": table}
