"""Shards over several workers of a real Prefect server: each computed once, and the shard of a killed worker elsewhere.

Two workers on one machine pretend to have a GPU each: `nvidia-smi` says so, and the limits go by what it says.
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest

from flows.limits import limits_of
from storage import layout
from storage.claims import Claims
from storage.errors import MissingObject
from storage.objects import open_store
from storage.rounds import Round
from tests.flows.prefect_server import PrefectServer
from tests.flows.processes import descendants, kill_all, wait_for
from tests.s3_server import s3_server
from tests.tiny import make_tiny

GPUS = ("GPU-0a000000-0000-4000-8000-000000000001", "GPU-0b000000-0000-4000-8000-000000000002")
SHARDS = Counter([f"{stage} {shard}" for stage in ("rollout", "score") for shard in range(8)]
                 + [f"evaluate {shard}" for shard in range(6)])
SMALL = {"rounds": 1, "prompts.per_round": 8, "prompts.per_shard": 1, "workers.pool": "'opd-gpus'",
         "workers.lease_s": 20}

ENDLESS = {"rollout.samples": 400, "rollout.max_new_tokens": 600, "rollout.engine.batch_size": 1}
"""Shards of a minute or more: the tiny student ends after 250 tokens on average."""


@pytest.fixture(scope="module")
def gpus(prefect, tmp_path_factory) -> dict[str, str]:
    """The environment of a machine with two GPUs, whose limits are there, and the pool."""
    program = tmp_path_factory.mktemp("bin") / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo {gpu}\n" for gpu in GPUS))
    program.chmod(0o755)
    environment = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    assert prefect.opd("doctor", "--fix", **environment).returncode == 0
    prefect.prefect("work-pool", "create", "opd-gpus", "--type", "process")
    return environment


def two_workers(server: PrefectServer, folder: Path, gpus: dict[str, str]):
    """Contexts of two workers, a GPU and one flow run at a time each. Nobody holds these GPUs, not even a flow run that
    an earlier test has killed."""
    for name in limits_of(GPUS):
        with server.held(name):
            pass
    return [machine(server, folder, index, CUDA_VISIBLE_DEVICES=gpu, **gpus) for index, gpu in enumerate(GPUS)]


@contextlib.contextmanager
def machine(server: PrefectServer, folder: Path, index: int, **environment: str) -> Iterator[subprocess.Popen]:
    """A worker with a temporary folder, a Prefect home and results of its own."""
    with tempfile.TemporaryDirectory(prefix="opd-", ignore_cleanup_errors=True) as own:
        where = {"TMPDIR": own, "PREFECT_HOME": f"{own}/home", "PREFECT_RESULTS_LOCAL_STORAGE_PATH": f"{own}/results"}
        with server.worker("opd-gpus", folder / f"{index}.log", "--limit", "1", "--name", f"{folder.name}-{index}",
                           **where, **environment) as worker:
            yield worker


class Held:
    """Claims of the test on every rollout shard of a round that has not begun: its workers wait for them."""

    def __init__(self, store: str | Path, run: str):
        self._round, self._over = Round(open_store(store, create=True), run, 0), Event()
        self._claims = Claims(self._round.store, run, 0, SMALL["workers.lease_s"])
        assert all(self._claims.take("rollout", shard) for shard in range(8))
        self._mine = set(self.owners())

    def __enter__(self) -> "Held":
        Thread(target=self._renew, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.let_go()

    def let_go(self) -> None:
        """Leave the rest to the workers."""
        self._over.set()
        for shard in range(8):
            self._claims.give_back("rollout", shard)

    def let_two_begin(self, server: PrefectServer, run: str) -> None:
        """Once two flow runs have their GPU, hand out shard after shard until both are at work at the same time."""
        wait_for(lambda: sum(job["state_type"] == "RUNNING" for job in jobs_of(server, run)) == 2, 150, every=0.5)
        wait_for(lambda: server.taken() >= set(limits_of(GPUS)), every=0.5)
        for shard in range(8):
            self._claims.give_back("rollout", shard)
            wait_for(lambda: self._round.receipt("rollout", shard) or shard in self.at_work())
            if len(set(self.at_work().values())) == 2:
                return
        pytest.fail("one worker did everything")

    def at_work(self) -> dict[int, str]:
        """Workers, by the rollout shard that they have."""
        return {shard: owner for shard, owner in self.owners().items() if owner not in self._mine}

    def owners(self) -> dict[int, str]:
        found, prefix = {}, layout.claims_prefix(self._round.run, 0) + "rollout-"
        for info in list(self._round.store.list(prefix)):
            with contextlib.suppress(MissingObject):  # given back in between
                shard = int(info.key.removeprefix(prefix).partition("/")[0])
                found[shard] = json.loads(self._round.store.get(info.key))["owner"]
        return found

    def _renew(self) -> None:
        while not self._over.wait(2):
            self._claims.renew()


def jobs_of(server: PrefectServer, run: str) -> list[dict]:
    found = server.call("/flow_runs/filter", {"flow_runs": {"tags": {"all_": [f"run:{run}"]}}})
    return [each for each in found if " round 0 [" in each["name"]]


def ended(jobs: list[dict]) -> bool:
    """Whether all flow runs ended well. One worker may be done with the evaluation, which is short, before the other
    has its flow run: that one is cancelled."""
    states = {step: {job["state_type"] for job in jobs if step in job["name"]} for step in ("rollout", "evaluate")}
    return states["rollout"] == {"COMPLETED"} and "COMPLETED" in states["evaluate"] <= {"COMPLETED", "CANCELLED"}


def computed(server: PrefectServer, jobs: list[dict]) -> Counter:
    """Names of completed task runs of these flow runs."""
    done = {"type": {"any_": ["COMPLETED"]}}
    return Counter(each["name"] for job in jobs for each in server.task_runs(job["id"], state=done))


@pytest.fixture
def s3() -> Iterator[dict[str, str]]:
    """The environment that reaches an S3 server."""
    with s3_server():
        yield {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


@pytest.mark.timeout(400)
def test_two_workers_that_share_a_store_on_s3_finish_a_round_and_no_shard_is_done_twice(prefect, tmp_path, gpus, s3):
    store = "s3://bucket/shared"
    config = make_tiny(tmp_path, run="'pooled'", store=f"'{store}'", **SMALL)
    first, second = two_workers(prefect, tmp_path, {**gpus, **s3})
    with Held(store, "pooled") as held, first, second:
        run = prefect.begin("run", config, **gpus, **s3)
        held.let_two_begin(prefect, "pooled")
        held.let_go()
        said = run.communicate(timeout=200)[0]
    assert run.returncode == 0, said
    round = Round(open_store(store), "pooled", 0)
    keys = [info.key for info in round.store.list(layout.round_prefix("pooled", 0))]
    assert round.manifest() and not any("/claims/" in key for key in keys)
    jobs = jobs_of(prefect, "pooled")
    assert {job["work_pool_name"] for job in jobs} == {"opd-gpus"} and ended(jobs)
    wait_for(lambda: computed(prefect, jobs) == SHARDS, 30)  # task runs reach the API through a queue
    receipts = Counter(Path(key).stem.replace("-", " ") for key in keys if "/receipts/" in key)
    assert receipts & SHARDS == SHARDS and sum("/part-" in key for key in keys) == receipts.total()
    pids = {timing["pid"] for timing in round.timings() if timing["stage"] == "rollout"}
    assert len(pids) == 2, "one worker did everything"


@pytest.mark.timeout(400)
def test_the_shard_of_a_worker_that_was_killed_is_done_by_the_other(prefect, tmp_path, gpus):
    config = make_tiny(tmp_path, run="'bereft'", **SMALL, **{"rollout.max_new_tokens": 600})
    round = tmp_path / "store/run=bereft/round=0"
    first, second = two_workers(prefect, tmp_path, gpus)
    with Held(tmp_path / "store", "bereft") as held, first as killed, second:
        run = prefect.begin("run", config)
        held.let_two_begin(prefect, "bereft")
        kill_all(killed)
        held.let_go()
        said = run.communicate(timeout=200)[0]
    assert run.returncode == 0, said
    assert (round / "manifest.json").exists() and not list(round.glob("claims/*/*"))
    states = Counter(job["state_type"] for job in jobs_of(prefect, "bereft"))
    assert states["CRASHED"] == 1, states
    assert len(list(round.rglob("part-*.parquet"))) == len(list((round / "receipts").iterdir()))


@pytest.mark.timeout(400)
def test_a_worker_that_waits_for_its_device_is_not_given_up_and_ends_when_nothing_is_left(prefect, tmp_path, gpus):
    few = {"prompts.per_round": 2, "evaluation.per_shard": 8, "workers.lease_s": 5}
    config = make_tiny(tmp_path, run="'patient'", **SMALL | few)
    first, second = two_workers(prefect, tmp_path, gpus)
    one, other = limits_of(GPUS)
    with prefect.held(other), first, second:
        with prefect.held(one):
            run = prefect.begin("run", config)  # prompts, masks and training by the CPU: its limit is free
            jobs = wait_for(lambda: len(found := jobs_of(prefect, "patient")) == 2 and found, every=0.2)
            wait_for(lambda: all("waiting for opd:gpu:" in prefect.logs(job["id"]) for job in jobs), every=0.2)
            time.sleep(3 * 5)
            assert not list((tmp_path / "store/run=patient/round=0/receipts").glob("rollout-*"))
        said = run.communicate(timeout=200)[0]
    assert run.returncode == 0 and "is asked again" not in said, said
    jobs = jobs_of(prefect, "patient")
    assert len(jobs) == 4 and ended(jobs), "two for each of two steps"
    rolled_out = [job for job in jobs if "rollout" in job["name"]]
    assert Counter("while this one waited" in job["state"]["message"] for job in rolled_out) == {True: 1, False: 1}


@pytest.mark.timeout(300)
def test_after_ctrl_c_the_flow_runs_of_the_pool_are_cancelled_and_their_processes_end(prefect, tmp_path, gpus):
    config = make_tiny(tmp_path, run="'stopped'", **SMALL | ENDLESS)
    (worker, _), round = two_workers(prefect, tmp_path, gpus), tmp_path / "store/run=stopped/round=0"
    with worker as process:
        run = prefect.begin("run", config)
        wait_for(lambda: list(round.glob("claims/rollout-*/*")), 150)
        wait_for(lambda: len(jobs_of(prefect, "stopped")) == 2, every=0.2)  # one has no worker
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=60)[0]
        assert run.returncode == 130, said
        wait_for(lambda: all(job["state_type"] == "CANCELLED" for job in jobs_of(prefect, "stopped")), 60, every=0.5)
        wait_for(lambda: not descendants(process.pid), 60, every=0.5)
    assert not list((round / "receipts").glob("rollout-*"))


def test_a_pool_that_is_not_there_is_one_line_and_without_one_two_processes_play_here(prefect, tmp_path):
    config = make_tiny(tmp_path, run="'poolless'", rounds=1)
    done = prefect.opd("run", config, "--set", "workers.pool=nowhere")
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "workers.pool = 'nowhere' is no work pool" in line
    without = prefect.opd("run", config, "--set", "workers.pool=nowhere", "--no-prefect")
    assert without.returncode == 2 and "set PREFECT_API_URL, or drop workers.pool" in without.stderr
    here = prefect.opd("run", config, "--set", "workers.processes=2")
    assert here.returncode == 0, here.stderr
    (round,) = prefect.flow_runs("poolless round 0")[-1:]
    shards = Counter(f"{stage} {shard}" for stage in ("prompts", "rollout", "score", "mask") for shard in range(4))
    shards += Counter(["plan", "publish", "train 0", *(f"evaluate {shard}" for shard in range(6))])
    wait_for(lambda: computed(prefect, prefect.flow_runs("poolless round 0")) == shards, 30)
    timings = [json.loads((tmp_path / f"store/run=poolless/round=0/timings/rollout-{shard}.json").read_text())
               for shard in range(4)]
    assert round["state_type"] == "COMPLETED" and len({each["pid"] for each in timings}) == 2
