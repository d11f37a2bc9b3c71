"""A run without Prefect: the same order, the same child processes, progress bars instead of task runs."""

from collections.abc import Callable

from flows.child import Child, OnProgress
from flows.order import next_round, play_round
from flows.team import Team, compute
from flows.work import Work
from pipeline.config import RunConfig
from pipeline.config.workers import Workers
from storage.errors import UserError
from storage.objects import open_store
from storage.rounds import Round, read_run

ProgressFor = Callable[[str], OnProgress]
"""progress_for(title) makes the progress callback of one piece of work."""


def distill(config: RunConfig, progress_for: ProgressFor, leave_training: bool = False) -> dict:
    """Play every round of `config` that is not committed; with `leave_training` up to where training is due, and
    {"training_due": round} is in what is returned."""
    if config.workers.pool:
        raise UserError(f"workers.pool = {config.workers.pool!r} is a work pool of a Prefect server: set "
                        "PREFECT_API_URL, or drop workers.pool to compute here")
    with Child() as child:
        child.call("start", progress_for(config.run), config=config.model_dump(mode="json"), here=True)
    played = []
    with Team(config.workers) as team:
        while (number := next_round(config.store, config.run, config.rounds)) is not None:
            done = distill_round(config.store, config.run, number, progress_for, team, leave_training)
            if done["manifest"] is None:
                return {"run": config.run, "played": played, "training_due": number}
            played.append(done)
            shown = show_in_trackers(config, number, progress_for)
            played[-1] |= {"trackers": shown} if shown else {}
    return {"run": config.run, "played": played}


def show_in_trackers(config: RunConfig, number: int, progress_for: ProgressFor) -> dict[str, str]:
    """Show the rounds up to a committed one in the config's trackers: by tracker "ok", or what is wrong with it.

    None of them can fail a round: what one does not get now, the next round or `opd track` brings.
    """
    if not config.tracker:
        return {}
    with Child() as child:
        return child.call("track", progress_for(f"round {number} trackers"), store=config.store, run=config.run,
                          number=number, trackers=[each.model_dump(mode="json") for each in config.tracker])


def distill_round(store: str, run: str, number: int, progress_for: ProgressFor, team: Team,
                  leave_training: bool = False) -> dict:
    """Play one round to its commit, or with `leave_training` to where training is due: "manifest" is None."""
    round = Round(open_store(store), run, number)
    config = read_run(round.store, run)["config"]
    where = {"store": store, "run": run, "number": number}

    def plan() -> None:
        team.child("prompts", config).call("plan", progress_for(f"round {number} plan"), **where)

    def play(pending: dict[str, list[int]]) -> None:
        play_shards(where, Work(round, pending), team, config, progress_for)

    manifest = play_round(round, plan, play, team.streams(config), leave_training)
    return {"run": run, "round": number, "manifest": manifest and manifest.id}


def play_stage(where: dict, stage: str, shards: list[int], progress_for: ProgressFor,
               workers: Workers = Workers()) -> list[dict]:
    """Compute some shards of one stage; what is told of each, by shard."""
    round = Round(open_store(where["store"]), where["run"], where["number"])
    config = read_run(round.store, where["run"])["config"]
    with Team(workers) as team:
        told = play_shards(where, Work(round, {stage: shards}), team, config, progress_for)
    return sorted(told, key=lambda each: each["shard"])


def play_shards(where: dict, work: Work, team: Team, config: dict, progress_for: ProgressFor) -> list[dict]:
    """Compute the shards of `work`, each once, under one progress bar; what is told of each."""
    update = progress_for(f"round {where['number']} {', '.join(work.stages)}")
    told: list[dict] = []

    def play(child: Child, stage: str, shard: int) -> None:
        at = f"{work.handed_out}/{work.total}" if len(work.stages) == 1 else f"{stage} {shard}"
        told.append(child.call("shard", within_shard(update, at), stage=stage, shard=shard, **where))

    compute(team.seats(work.stages, config), work, play)
    return told


def within_shard(update: OnProgress, at: str) -> OnProgress:
    """A callback that says at which shard the stage is, before what the shard says of itself."""
    return lambda what, done, total: update(f"{at} {what}", done, total)
