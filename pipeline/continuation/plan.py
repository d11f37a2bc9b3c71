"""Who goes on from which prompts' rollouts, under which seeds: a round's continuation shards, in the round's plan."""

from collections.abc import Sequence

from pipeline.config import RunConfig
from pipeline.prompts.draw import hash63
from pipeline.prompts.pool import context_window, read_prompts
from storage.errors import UserError
from storage.rounds import ContinuationShard, PlanShard

ROLES = ("student", "teacher")


def plan_continuation(config: RunConfig, shards: Sequence[PlanShard], number: int) -> list[ContinuationShard]:
    """By model, one shard for each shard of the plan that holds some of its first `continuation.prompts` prompts."""
    settings = config.continuation
    if settings is None or (number + 1) % settings.every:
        return []
    first = set([prompt_id for shard in shards for prompt_id in shard.prompt_ids][:settings.prompts])
    parts = [[prompt_id for prompt_id in shard.prompt_ids if prompt_id in first] for shard in shards]
    planned = [(role, part) for role in ROLES for part in parts if part]
    return [ContinuationShard(index, *each) for index, each in enumerate(planned)]


def continuation_seed(seed: int, round: int, rollout_id: int, depth: int, role: str, sample: int) -> int:
    """63-bit seed of the stream of random numbers that one continuation is drawn from; `seed` is the run's."""
    return hash63("continuation", seed, round, rollout_id, depth, role, sample)


def room_after(config: RunConfig, depth: int) -> int:
    """Tokens that a continuation may have behind `depth` tokens of a rollout."""
    return config.continuation.max_new_tokens or config.rollout.max_new_tokens - depth


def check_continuation(config: RunConfig, pool: dict) -> None:
    """Raise UserError for what would give no row, or would not fit a model. `pool` is what run.json records of it."""
    settings = config.continuation
    if settings is None:
        return
    deepest, longest = settings.depths[-1], config.rollout.max_new_tokens
    if deepest >= longest:
        raise UserError(f"continuation.depths: no rollout is longer than {deepest} tokens, for rollout.max_new_tokens "
                        f"= {longest}: drop the depths from {longest} on")
    if all(prompt.ground_truth is None for prompt in read_prompts(config.prompts)[0].values()):
        raise UserError("[continuation] grades what the models write, but no prompt has a reference answer: name its "
                        "column as prompts.source.answer, or drop [continuation]")
    needed = pool["longest_tokens"] + deepest + room_after(config, deepest)
    for role in ROLES:
        window = context_window(getattr(config, role))
        if window is not None and needed > window:
            raise UserError(f"the {role} reads {window} tokens, but the longest prompt has {pool['longest_tokens']}, "
                            f"a prefix {deepest}, and continuation.max_new_tokens = {settings.max_new_tokens}: lower "
                            "one of the two")
