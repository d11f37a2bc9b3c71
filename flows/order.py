"""The order of a round and of a run, for anybody who can play a shard: with Prefect or without.

A round is: plan, then prompts, rollout, score, hidden, continuation, mask, train, evaluate, each shard by shard and
committed, then the manifest. `hidden` and `continuation` have shards only where the config asks for them.
What has a receipt is not played again, so the same call starts a round, resumes it, or finds it finished.
"""

from collections.abc import Callable

from pipeline.stages import commit_round
from storage.layout import STAGES
from storage.objects import open_store
from storage.rounds import Manifest, Round, committed_rounds

PlayStage = Callable[[str, list[int]], None]
"""play_stage(stage, shards): compute these shards of the stage; returns when each has a receipt."""


def play_round(round: Round, plan: Callable[[], None], play_stage: PlayStage) -> Manifest:
    """Bring `round` to its commit. Returns its manifest."""
    committed = round.manifest()
    if committed:
        return committed
    if not round.planned():
        plan()
    for stage in STAGES:
        if round.stage_committed(stage):
            continue
        if pending := round.pending(stage):
            play_stage(stage, pending)
        round.commit_stage(stage)
    return commit_round(round)


def next_round(store_url: str, run: str, rounds: int) -> int | None:
    """The round to play now: the first that is not committed; None when all `rounds` are."""
    done = set(committed_rounds(open_store(store_url), run))
    return next((number for number in range(rounds) if number not in done), None)
