"""A shard as a Prefect task run: started and watched by a flow run, computed in its child process."""

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.child import Child, ChildEnded, OnProgress
from flows.labels import PLAIN
from pipeline.context import silent
from storage.errors import IntegrityError, UserError


def worth_a_retry(task, task_run, state) -> bool:
    """A user's error and damaged bytes stay what they are, and a child that was killed here was to end; one that died
    may not."""
    return not isinstance(state.result(raise_on_failure=False), UserError | IntegrityError | ChildEnded)


@task(name="shard", retries=2, retry_delay_seconds=[1, 10], retry_condition_fn=worth_a_retry, cache_policy=NO_CACHE,
      **PLAIN)
def play_shard(child: Child, stage: str, shard: int, where: dict, progress: OnProgress | None) -> dict:
    """Compute one shard of one stage in its seat's child process."""
    done = child.call("shard", progress or silent, stage=stage, shard=shard, **where)
    get_run_logger().info("%s %s: %s rows, %s bytes", stage, shard, done["rows"], done["bytes"])
    return done
