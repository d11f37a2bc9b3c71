"""A run without Prefect: the same order, the same child processes, progress bars instead of task runs."""

from collections.abc import Callable

from flows.child import Child, OnProgress
from flows.order import next_round, play_round
from pipeline.config import RunConfig
from storage.objects import open_store
from storage.rounds import Round


def distill(config: RunConfig, progress_for: Callable[[str], OnProgress]) -> dict:
    """Play every round of `config` that is not committed; `progress_for(title)` makes a progress callback."""
    with Child() as child:
        child.call("start", progress_for(config.run), config=config.model_dump(mode="json"))
    played = []
    while (number := next_round(config.store, config.run, config.rounds)) is not None:
        played.append(distill_round(config.store, config.run, number, progress_for))
        shown = show_in_trackers(config, number, progress_for)
        played[-1] |= {"trackers": shown} if shown else {}
    return {"run": config.run, "played": played}


def show_in_trackers(config: RunConfig, number: int, progress_for: Callable[[str], OnProgress]) -> dict[str, str]:
    """Show the rounds up to a committed one in the config's trackers: by tracker "ok", or what is wrong with it.

    None of them can fail a round: what one does not get now, the next round or `opd track` brings.
    """
    if not config.tracker:
        return {}
    with Child() as child:
        return child.call("track", progress_for(f"round {number} trackers"), store=config.store, run=config.run,
                          number=number, trackers=[each.model_dump(mode="json") for each in config.tracker])


def distill_round(store: str, run: str, number: int, progress_for: Callable[[str], OnProgress]) -> dict:
    """Play one round to its commit."""
    round = Round(open_store(store), run, number)
    where = {"store": store, "run": run, "number": number}

    def plan() -> None:
        with Child() as child:
            child.call("plan", progress_for(f"round {number} plan"), **where)

    def play_stage(stage: str, shards: list[int]) -> None:
        play_shards(where, stage, shards, progress_for)

    manifest = play_round(round, plan, play_stage)
    return {"run": run, "round": number, "manifest": manifest.id}


def play_shards(where: dict, stage: str, shards: list[int], progress_for: Callable[[str], OnProgress]) -> list[dict]:
    """Compute `shards` of one stage in one child, one after the other, under one progress bar."""
    update = progress_for(f"round {where['number']} {stage}")
    with Child() as child:
        return [child.call("shard", within_shard(update, at, len(shards)), stage=stage, shard=shard, **where)
                for at, shard in enumerate(shards, 1)]


def within_shard(update: OnProgress, at: int, shards: int) -> OnProgress:
    """A callback that says at which shard the stage is, before what the shard says of itself."""
    return lambda what, done, total: update(f"{at}/{shards} {what}", done, total)
