"""One round as a Prefect flow: prompts, rollout, score, mask, train; each shard is a task run.

A task run starts and watches the child process that computes its shard, passes its progress on and returns a small
dict. Prefect schedules; what is done is decided by receipts in the store alone, so a flow run that was killed is
simply run again. The order itself is flows/order.py.
"""

import time

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.child import Child
from flows.order import play_round
from pipeline.config.model import Count
from storage.errors import IntegrityError, UserError
from storage.objects import open_store
from storage.rounds import Round

LOG_EVERY_S = 10.0
"""Progress of a running shard is logged at most so often."""


def worth_a_retry(task, task_run, state) -> bool:
    """A user's error and damaged bytes stay what they are; a child that died may not."""
    return not isinstance(state.result(raise_on_failure=False), UserError | IntegrityError)


@flow(name="opd-round", flow_run_name="{run} round {number}", persist_result=False)
def distill_round(store: str, run: str, number: Count) -> dict:
    """Play round `number` of `run` from wherever it stands to its commit. Returns the id of its manifest."""
    round = Round(open_store(store), run, number)
    where = {"store": store, "run": run, "number": number}

    def play_stage(stage: str, shards: list[int]) -> None:
        with Child() as child:
            for shard in shards:
                play_shard.with_options(task_run_name=f"{stage} {shard}")(child, stage, shard, where)

    manifest = play_round(round, lambda: plan_round(where), play_stage)
    return {"run": run, "round": number, "manifest": manifest.id}


@task(name="plan", task_run_name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_round(where: dict) -> dict:
    """Draw the round's prompts and write its plan."""
    with Child() as child:
        return child.call("plan", progress_to_log(), **where)


@task(name="shard", retries=2, retry_delay_seconds=[1, 10], retry_condition_fn=worth_a_retry, cache_policy=NO_CACHE,
      persist_result=False)
def play_shard(child: Child, stage: str, shard: int, where: dict) -> dict:
    """Compute one shard of one stage in the stage's child process."""
    done = child.call("shard", progress_to_log(), stage=stage, shard=shard, **where)
    get_run_logger().info("%s %s: %s rows, %s bytes", stage, shard, done["rows"], done["bytes"])
    return done


def progress_to_log():
    """A progress callback that writes to the run's log, not more than every LOG_EVERY_S seconds."""
    logger, last = get_run_logger(), time.monotonic()

    def log(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LOG_EVERY_S:
            logger.info("%s: %s of %s", what, done, total)
            last = time.monotonic()

    return log
