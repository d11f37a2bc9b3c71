"""The order of a round and of a run, for anybody who can play a shard: with Prefect or without.

A round is: plan, then prompts, rollout, score, hidden, continuation, mask, train, evaluate, each shard by shard and
committed, then the manifest. `hidden` and `continuation` have shards only where the config asks for them.
What has a receipt is not played again, so the same call starts a round, resumes it, or finds it finished.

Where there are devices for it, rollout, score and hidden are played together: a shard is scored as soon as its own
rollouts have their receipt. They are committed in their order all the same.
"""

from collections.abc import Callable, Iterator

from pipeline.stages import commit_round
from storage.layout import STAGES
from storage.objects import open_store
from storage.rounds import Manifest, Round, committed_rounds

Pending = dict[str, list[int]]
"""Stages, in their order, and their shards without a receipt."""
PlayStages = Callable[[Pending], None]
"""Computes all of these shards; returns when each has a receipt."""
STREAMED = ("rollout", "score", "hidden")
"""Stages that read the same shard of the one before."""


def play_round(round: Round, plan: Callable[[], None], play: PlayStages, stream: bool = False,
               leave_training: bool = False) -> Manifest | None:
    """Bring `round` to its commit, with the stages of STREAMED together if `stream`. Returns its manifest; with
    `leave_training` None where training is due, which somebody else is to do."""
    committed = round.manifest()
    if committed:
        return committed
    if not round.planned():
        plan()
    for stages in steps(stream):
        open_stages = [stage for stage in stages if not round.stage_committed(stage)]
        pending = {stage: shards for stage in open_stages if (shards := round.pending(stage))}
        if leave_training and "train" in pending:
            return None
        if pending:
            play(pending)
        for stage in open_stages:
            round.commit_stage(stage)
    return commit_round(round)


def steps(stream: bool) -> Iterator[tuple[str, ...]]:
    """The stages in their order, those that are played together side by side."""
    for stage in STAGES:
        if not stream or stage not in STREAMED:
            yield (stage,)
        elif stage == STREAMED[0]:
            yield STREAMED


def next_round(store_url: str, run: str, rounds: int) -> int | None:
    """The round to play now: the first that is not committed; None when all `rounds` are."""
    done = len(committed_rounds(open_store(store_url), run))
    return done if done < rounds else None
