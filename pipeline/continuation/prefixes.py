"""Rollouts of a round, and where they are cut: prefixes in the token ids that the student drew, never in text.

    rollouts = read_rollouts(context, planned.prompt_ids, checkpoint)
    places = cut(rollouts, depths)
"""

from collections.abc import Sequence

from pipeline.context import RoundContext
from pipeline.provenance import check_tokens, check_writer
from storage.errors import UserError
from storage.records import CheckpointFiles

COLUMNS = ["rollout_id", "prompt_id", "sample", "task", "ground_truth", "prompt_tokens", "response_tokens", "turns",
           "policy_version", "token_hash"]


def read_rollouts(context: RoundContext, prompt_ids: Sequence[int], start: CheckpointFiles) -> tuple[list[dict], dict]:
    """The first `continuation.rollouts` rollouts of each prompt, in their order, and the files they lie in.

    Raises IntegrityError for tokens that are not those of the rollout, or that `start` did not write, and UserError
    for a rollout of several turns.
    """
    wanted, count = set(prompt_ids), context.config.continuation.rollouts
    found, files = [], {}
    for shard in context.round.plan().shards:
        if wanted.isdisjoint(shard.prompt_ids):
            continue
        where = f"rollouts of shard {shard.index}"
        table = context.round.read("rollout", shard.index, COLUMNS)
        check_tokens(table, where)
        check_writer(table, start.fingerprint, where)
        found += [row for row in table.to_pylist() if row["prompt_id"] in wanted and row["sample"] < count]
        files |= context.round.input_files("rollout", shard.index)
    for row in found:
        _refuse_turns(row)
    return found, files


def cut(rollouts: Sequence[dict], depths: Sequence[int]) -> list[tuple[dict, int]]:
    """(rollout, depth) for each depth that its rollout is longer than: what is left out there is at least a token."""
    return [(rollout, depth) for rollout in rollouts for depth in depths if depth < len(rollout["response_tokens"])]


def _refuse_turns(row: dict) -> None:
    """An environment's answer to what a continuation says cannot be had here."""
    if row["turns"] != [{"start": 0, "end": len(row["response_tokens"])}]:
        raise UserError(f"rollout {row['rollout_id']} has other turns than one of the student alone: rollouts with an "
                        "environment cannot be continued; drop [continuation]")
