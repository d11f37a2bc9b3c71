"""Shards of a stage on several machines: flow runs of one deployment, that the workers of a Prefect work pool play.

Who plays a round asks the pool for `workers.pool_jobs` flow runs of `opd-shards/POOL` and waits until every shard has
its receipt. Each flow run takes shards until none is left, on all the GPUs its worker shows it, so that a worker loads
its models once and a slow one takes fewer. Prefect's queue decides who gets a flow run, claims in the store who takes
which shard (storage/claims.py), receipts what counts.

A worker that was killed half-way leaves its shard to the others after `workers.lease_s`; if none is left, the pool is
asked again. The deployment is made here; a worker's machine needs opd-rounds, the store, the models, and its devices'
limits (`opd doctor --fix`).
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Failed, State

from flows import limits
from flows.api import client, server_url
from flows.artifacts import StageProgress
from flows.child import ChildFailed
from flows.labels import PLAIN, label, run_tags
from flows.shard import play_shard
from flows.team import Team, compute
from flows.work import Work
from pipeline.config.section import Count
from pipeline.config.workers import Workers
from storage.claims import Claims
from storage.errors import IntegrityError, UserError
from storage.layout import WORKER
from storage.objects import open_store
from storage.rounds import Round, read_run

POLL_S = 1.0
ASKED_AT_MOST = 3
"""How often flow runs are asked for in a stage before it is given up."""
ENDING_S = 30.0
"""The least time that a flow run has to see that nothing is left."""
MOST = 200
"""The server lists no more at once."""
REFUSED = "Refused"
"""State of a flow run whose user can mend it: asking again is no use."""
OPEN = {"SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"}
MODULE = "flows.pool.compute_shards"


@flow(name="opd-shards", flow_run_name="{run} round {number} {stages}", **PLAIN)
def compute_shards(store: str, run: str, number: Count, stages: list[str], workers: Workers, folder: str) -> dict:
    """Compute shards of some stages until none is left.

    Args:
        store: Folder of the store, or s3://bucket/prefix, as this worker sees it.
        run: Id of the run. Its config is in the store.
        number: The round.
        stages: Names of the stages, in their order.
        workers: Its `processes` are started on this machine.
        folder: Where the run is played: relative paths of its config begin there.
    """
    if Path(folder).is_dir():
        os.chdir(folder)
    try:
        label(run_tags(run, number))
        return _compute({"store": store, "run": run, "number": number}, stages, workers)
    except (UserError, IntegrityError) as error:
        return Failed(name=REFUSED, message=str(error), data=error)


def _compute(where: dict, stages: list[str], workers: Workers) -> State:
    round = Round(open_store(where["store"]), where["run"], where["number"])
    claims = Claims(round.store, round.run, round.number, workers.lease_s)
    work = Work(round, {stage: round.pending(stage) for stage in stages}, claims)
    done: list[str] = []

    def play(child, stage: str, shard: int) -> None:
        play_shard.with_options(task_run_name=f"{stage} {shard}")(child, stage, shard, where, None)
        done.append(f"{stage} {shard}")

    with Team(workers) as team, _renewed(claims):
        seats = team.seats(stages, read_run(round.store, where["run"])["config"])
        try:
            with limits.devices([gpu for seat in seats for gpu in seat.gpus], wanted=lambda: _left(round, stages) > 0):
                compute(seats, work, play)
        except limits.Busy:
            return Completed(message="Others computed every shard while this one waited for its devices", data=[])
    return Completed(message=f"{len(done)} shards computed here", data=done)


@contextmanager
def _renewed(claims: Claims) -> Iterator[None]:
    """Renew what is claimed, four times within a lease, and show that this worker lives, also while it has no shard:
    it may wait for a device for hours."""
    over, here = threading.Event(), UUID(flow_run.id).int
    claims.attend(here)

    def renew() -> None:
        while not over.wait(claims.lease_s / 4):
            try:
                claims.renew()
            except Exception as error:  # a store that is away for a moment: the work of minutes is worth more
                print(f"claims are not renewed: {type(error).__name__}: {' '.join(str(error).split())}")

    threading.Thread(target=renew, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        claims.give_back(WORKER, here)


def compute_in_pool(where: dict, pending: dict[str, list[int]], workers: Workers) -> None:
    """Have the pool compute these shards. Raises what a flow run there was refused for, ChildFailed if none helps."""
    round = Round(open_store(where["store"]), where["run"], where["number"])
    claims = Claims(round.store, round.run, round.number, workers.lease_s)
    jobs = Jobs(where, list(pending), workers, claims)
    progress = StageProgress(where["run"], where["number"], ", ".join(pending), 1)
    total = sum(map(len, pending.values()))
    watch = _Watch(workers.lease_s)
    try:
        while left := _left(round, pending):
            progress.shard(1)("shards", total - left, total)
            nobody = jobs.ended() or (watch.silent((left, claims.look())) and not jobs.wait_for_workers())
            if nobody and (left := _left(round, pending)):  # the last of them may have finished in between
                jobs.ask(f"{left} of {total} shards are left, and nobody is at work on them")
            time.sleep(POLL_S)
    except BaseException:  # nobody waits for what was asked for
        jobs.cancel()
        raise
    progress.finish()
    jobs.end()
    claims.clear()


def _left(round: Round, stages: Iterable[str]) -> int:
    return sum(len(round.pending(stage)) for stage in stages)


class _Watch:
    """Whether nothing that is shown to it has changed for two leases."""

    def __init__(self, lease_s: float):
        self._lease_s, self._seen, self._since = lease_s, None, time.monotonic()

    def silent(self, shown) -> bool:
        if shown != self._seen:
            self._seen, self._since = shown, time.monotonic()
        if time.monotonic() - self._since < 2 * self._lease_s:
            return False
        self._since = time.monotonic()
        return True


class Jobs:
    """The flow runs that the pool was asked for in one stage."""

    def __init__(self, where: dict, stages: list[str], workers: Workers, claims: Claims):
        self._workers, self._claims, self._ids, self._asked = workers, claims, [], 0
        self._parameters = {**where, "stages": stages, "workers": workers.model_dump(mode="json"),
                            "folder": os.getcwd()}
        self.ask("")

    def ask(self, why: str) -> None:
        """Ask for flow runs, again if some were asked for. Raises ChildFailed where that has not helped."""
        from prefect.deployments import run_deployment

        if self._asked == ASKED_AT_MOST:
            raise ChildFailed(f"work pool {self._workers.pool}: {why}; it was asked {ASKED_AT_MOST} times: "
                              "see their logs in Prefect. What is finished is kept, run the same command again")
        if why:
            get_run_logger().warning("%s: work pool %s is asked again", why, self._workers.pool)
        self._asked += 1
        run, number, stages = (self._parameters[name] for name in ("run", "number", "stages"))
        for _ in range(self._workers.pool_jobs):
            asked = run_deployment(deployment(self._workers.pool), parameters=self._parameters, timeout=0,
                                   flow_run_name=f"{run} round {number} {stages}", tags=run_tags(run, number))
            self._ids.append(asked.id)

    def ended(self) -> bool:
        """Whether every flow run has ended. Raises UserError with the line of one that was refused."""
        states = self._states()
        for state in states.values():
            if state.name == REFUSED:
                raise UserError(state.message)
        return not any(state.type.value in OPEN for state in states.values())

    def wait_for_workers(self) -> bool:
        """Whether a flow run waits for a worker; the log then says how to start one."""
        waiting = any(state.type.value in ("SCHEDULED", "PENDING") for state in self._states().values())
        if waiting:
            get_run_logger().info("no worker of work pool %s is free; to start one: prefect worker start --pool '%s'",
                                  self._workers.pool, self._workers.pool)
        return waiting

    def end(self) -> None:
        """Leave no flow run behind: those that run find nothing left and end, those that never ran are cancelled, and
        so are those that go on with what another has finished. Those whose worker is silent for a lease, or was never
        heard of, are told to have crashed."""
        end = time.monotonic() + max(self._workers.lease_s, ENDING_S)
        while True:
            self._claims.look()
            states = {each: state for each, state in self._states().items() if state.type.value in OPEN}
            running = [each for each, state in states.items() if state.type.value in ("PENDING", "RUNNING")]
            if all(self._claims.silent(WORKER, each.int) for each in running) or time.monotonic() > end:
                break
            time.sleep(POLL_S / 2)
        living = {UUID(int=number) for stage, number in self._claims.look() if stage == WORKER
                  and not self._claims.silent(stage, number)}
        with client() as api:
            for each in states:
                if each in living:
                    api.set_flow_run_state(each, Cancelling(message="nothing is left"))
                elif each in running:
                    api.set_flow_run_state(each, Crashed(message="its worker is gone"), force=True)
                else:
                    api.set_flow_run_state(each, Cancelled(message="nothing is left"), force=True)

    def cancel(self) -> None:
        """Stop what was asked for."""
        with client() as api:
            for each, state in self._states().items():
                if state.type.value in ("RUNNING", "CANCELLING"):
                    api.set_flow_run_state(each, Cancelling())
                elif state.type.value in OPEN:
                    api.set_flow_run_state(each, Cancelled(message="its round was stopped"), force=True)

    def _states(self) -> dict[UUID, State]:
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        with client() as api:
            found = [each for first in range(0, len(self._ids), MOST) for each in api.read_flow_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=self._ids[first:first + MOST])))]
        return {each.id: each.state for each in found}


@lru_cache(maxsize=8)
def deployment(pool: str) -> UUID:
    """The deployment `opd-shards/POOL`, made or brought up to date once per process. Raises UserError without a pool.
    """
    from prefect.exceptions import ObjectNotFound
    from prefect.types.entrypoint import EntrypointType

    if not server_url():
        raise UserError(f"workers.pool = {pool!r} needs a Prefect server: set PREFECT_API_URL")
    with client() as api:
        try:
            api.read_work_pool(pool)
        except ObjectNotFound:
            raise UserError(f"workers.pool = {pool!r} is no work pool of the Prefect server: make it with `prefect "
                            f"work-pool create '{pool}' --type process`") from None
    return compute_shards.to_deployment(pool, work_pool_name=pool, tags=["opd"],
                                        entrypoint_type=EntrypointType.MODULE_PATH).apply()
