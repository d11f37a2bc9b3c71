"""One round as a Prefect flow: the stages of storage/layout.py in their order; each shard is a task run.

A task run starts and watches the child process that computes its shard, passes its progress on and returns a small
dict. Prefect schedules; what is done is decided by receipts in the store alone, so a flow run that was killed is
simply run again, and one of a committed round only publishes it again. The order itself is flows/order.py.

Where `workers.pool` names a work pool, its workers compute the shards that can be spread (flows/pool.py).
"""

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from flows import limits
from flows.artifacts import StageProgress, attempt, publish
from flows.child import Child
from flows.labels import PLAIN, label, refused, run_tags
from flows.order import play_round
from flows.shard import play_shard
from flows.team import SPREAD, Team, compute, gathered
from flows.work import Work
from pipeline.config import RunConfig
from pipeline.config.section import Count
from pipeline.config.workers import Workers
from pipeline.context import silent
from storage.errors import IntegrityError, UserError
from storage.objects import open_store
from storage.rounds import Round, read_run


@flow(name="opd-round", flow_run_name="{run} round {number}", **PLAIN)
def distill_round(store: str, run: str, number: Count, workers: Workers = Workers(),
                  leave_training: bool = False) -> dict:
    """Play one round of a run that was started, from wherever it stands to its commit.

    Args:
        store: Folder of the store, or s3://bucket/prefix.
        run: Id of the run. Its config is in the store.
        number: The round: the first that is not committed, or an earlier one, which is published again.
        workers: Who computes the shards: section [workers] of a config.
        leave_training: Stop where training is due, for `torchrun` over several machines to do it.
    """
    try:
        label(run_tags(run, number))
        with limits.playing(store, run, wait=True), gathered(workers) as team:
            return _play(store, run, number, team, leave_training)
    except (UserError, IntegrityError) as error:
        return refused(error)


def nested_round(config: RunConfig, number: int, leave_training: bool = False) -> dict:
    """Play a round within this flow run, whose heartbeat is enough for both: a flow run that has its own looks once a
    second whether it is over, and ends half a second late."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        return distill_round(config.store, config.run, number, config.workers, leave_training)


def _play(store: str, run: str, number: int, team: Team, leave_training: bool) -> State:
    round = Round(open_store(store), run, number)
    config = read_run(round.store, run)["config"]
    where = {"store": round.store.url, "run": run, "number": number}

    def play(pending: dict[str, list[int]]) -> None:
        if team.workers.pool and SPREAD.issuperset(pending):
            from flows.pool import compute_in_pool

            compute_in_pool(where, pending, team.workers)
        else:
            _compute_here(where, Work(round, pending), team, config)

    def plan() -> None:
        plan_round(team.child("prompts", config), where)

    manifest = play_round(round, plan, play, team.streams(config), leave_training)
    if manifest is None:
        return Completed(message="Training is due", data={"run": run, "round": number, "manifest": None})
    publish_round(where)
    return Completed(message=f"Committed as {manifest.id[:12]}",
                     data={"run": run, "round": number, "manifest": manifest.id})


def _compute_here(where: dict, work: Work, team: Team, config: dict) -> None:
    """Compute shards on this machine, holding the devices from before models are loaded until they are gone."""
    progress = StageProgress(where["run"], where["number"], ", ".join(work.stages), work.total)

    def play(child: Child, stage: str, shard: int) -> None:
        told = progress.shard(work.handed_out)
        play_shard.with_options(task_run_name=f"{stage} {shard}")(child, stage, shard, where, told)

    seats = team.seats(work.stages, config)
    with limits.devices([gpu for seat in seats for gpu in seat.gpus]):
        compute(seats, work, play)
    progress.finish()


@task(name="plan", task_run_name="plan", cache_policy=NO_CACHE, **PLAIN)
def plan_round(child: Child, where: dict) -> dict:
    """Draw the round's prompts and write its plan, in the child that writes the prompts: it has read them."""
    return child.call("plan", silent, **where)


@task(name="publish", task_run_name="publish", cache_policy=NO_CACHE, **PLAIN)
def publish_round(where: dict) -> None:
    """Make the artifacts of a committed round; what fails costs a warning, for the round is committed."""
    with Child() as child:
        summary = attempt("the report", lambda: child.call("summary", silent, **where))
    if summary:
        publish(where["run"], where["number"], summary)
