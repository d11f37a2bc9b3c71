"""One round as a Prefect flow: the stages of storage/layout.py in their order; each shard is a task run.

A task run starts and watches the child process that computes its shard, passes its progress on and returns a small
dict. Prefect schedules; what is done is decided by receipts in the store alone, so a flow run that was killed is
simply run again, and one of a committed round only publishes it again. The order itself is flows/order.py.
"""

from prefect import flow, get_run_logger, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from flows import limits
from flows.artifacts import StageProgress, attempt, publish
from flows.child import Child, OnProgress
from flows.labels import PLAIN, labelled, refused, run_tags
from flows.order import play_round
from pipeline.config.model import Count
from pipeline.context import silent
from storage.errors import IntegrityError, UserError
from storage.objects import open_store
from storage.rounds import Round


def worth_a_retry(task, task_run, state) -> bool:
    """A user's error and damaged bytes stay what they are; a child that died may not."""
    return not isinstance(state.result(raise_on_failure=False), UserError | IntegrityError)


@flow(name="opd-round", flow_run_name="{run} round {number}", **PLAIN)
def distill_round(store: str, run: str, number: Count) -> dict:
    """Play one round of a run that was started, from wherever it stands to its commit.

    Args:
        store: Folder of the store, or s3://bucket/prefix.
        run: Id of the run. Its config is in the store.
        number: The round: the first that is not committed, or an earlier one, which is published again.
    """
    try:
        with labelled(run_tags(run, number)), limits.playing(store, run, wait=True):
            return _play(store, run, number)
    except (UserError, IntegrityError) as error:
        return refused(error)


def _play(store: str, run: str, number: int) -> State:
    round = Round(open_store(store), run, number)
    where = {"store": store, "run": run, "number": number}

    def play_stage(stage: str, shards: list[int]) -> None:
        progress = StageProgress(run, number, stage, len(shards))
        with limits.device(), Child() as child, tags(f"stage:{stage}"):
            for at, shard in enumerate(shards, 1):
                play = play_shard.with_options(task_run_name=f"{stage} {shard}")
                play(child, stage, shard, where, progress.shard(at))
        progress.finish()

    manifest = play_round(round, lambda: plan_round(where), play_stage)
    publish_round(where)
    return Completed(message=f"Committed as {manifest.id[:12]}",
                     data={"run": run, "round": number, "manifest": manifest.id})


@task(name="plan", task_run_name="plan", tags=["stage:plan"], cache_policy=NO_CACHE, **PLAIN)
def plan_round(where: dict) -> dict:
    """Draw the round's prompts and write its plan."""
    with Child() as child:
        return child.call("plan", silent, **where)


@task(name="shard", retries=2, retry_delay_seconds=[1, 10], retry_condition_fn=worth_a_retry, cache_policy=NO_CACHE,
      **PLAIN)
def play_shard(child: Child, stage: str, shard: int, where: dict, progress: OnProgress) -> dict:
    """Compute one shard of one stage in the stage's child process."""
    done = child.call("shard", progress, stage=stage, shard=shard, **where)
    get_run_logger().info("%s %s: %s rows, %s bytes", stage, shard, done["rows"], done["bytes"])
    return done


@task(name="publish", task_run_name="publish", tags=["stage:publish"], cache_policy=NO_CACHE, **PLAIN)
def publish_round(where: dict) -> None:
    """Make the artifacts of a committed round; what fails costs a warning, for the round is committed."""
    with Child() as child:
        summary = attempt("the report", lambda: child.call("summary", silent, **where))
    if summary:
        publish(where["run"], where["number"], summary)
