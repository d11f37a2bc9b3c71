"""Shards over several workers of a real Prefect server: each computed once, and the shard of a killed worker elsewhere.

Two workers on one machine pretend to have a GPU each: `nvidia-smi` says so, and the limits go by what it says.
"""

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.flows.prefect_server import PrefectServer
from tests.flows.processes import kill_all, wait_for
from tests.tiny import make_tiny

GPUS = ("GPU-0a000000-0000-4000-8000-000000000001", "GPU-0b000000-0000-4000-8000-000000000002")
SHARDS = Counter([f"{stage} {shard}" for stage in ("rollout", "score") for shard in range(8)]
                 + [f"evaluate {shard}" for shard in range(6)])
SMALL = {"rounds": 1, "prompts.per_round": 8, "prompts.per_shard": 1, "workers.pool": "'opd-gpus'",
         "workers.lease_s": 20}


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
    """Contexts of two workers, a GPU and one flow run at a time each."""
    return [server.worker("opd-gpus", folder / f"{index}.log", "--limit", "1", "--name", f"{folder.name}-{index}",
                          CUDA_VISIBLE_DEVICES=gpu, **gpus) for index, gpu in enumerate(GPUS)]


def jobs_of(server: PrefectServer, run: str) -> list[dict]:
    found = server.call("/flow_runs/filter", {"flow_runs": {"tags": {"all_": [f"run:{run}"]}}})
    return [each for each in found if " round 0 [" in each["name"]]


def computed(server: PrefectServer, jobs: list[dict]) -> Counter:
    """Names of completed task runs of these flow runs."""
    done = {"type": {"any_": ["COMPLETED"]}}
    return Counter(each["name"] for job in jobs for each in server.task_runs(job["id"], state=done))


@pytest.mark.timeout(240)
def test_two_workers_finish_the_shards_of_a_round_and_no_shard_is_done_twice(prefect, tmp_path, gpus):
    config = make_tiny(tmp_path, run="'pooled'", **SMALL)
    first, second = two_workers(prefect, tmp_path, gpus)
    with first, second:
        done = prefect.opd("run", config, **gpus)
    assert done.returncode == 0, done.stderr
    round = tmp_path / "store/run=pooled/round=0"
    assert (round / "manifest.json").exists() and not list(round.glob("claims/*/*"))
    jobs = jobs_of(prefect, "pooled")
    assert all(job["work_pool_name"] == "opd-gpus" and job["state_type"] == "COMPLETED" for job in jobs)
    wait_for(lambda: computed(prefect, jobs) == SHARDS, 30)  # task runs reach the API through a queue
    receipts = Counter(file.stem.replace("-", " ") for file in (round / "receipts").iterdir())
    assert receipts & SHARDS == SHARDS and len(list(round.rglob("part-*.parquet"))) == receipts.total()
    timings = [json.loads((round / f"timings/rollout-{shard}.json").read_text()) for shard in range(8)]
    assert len({each["pid"] for each in timings}) == 2, "one worker did everything"


@pytest.mark.timeout(240)
def test_the_shard_of_a_worker_that_was_killed_is_done_by_the_other(prefect, tmp_path, gpus):
    config = make_tiny(tmp_path, run="'bereft'", **SMALL, **{"rollout.max_new_tokens": 600})
    round = tmp_path / "store/run=bereft/round=0"
    first, second = two_workers(prefect, tmp_path, gpus)
    with first as killed, second:
        run = prefect.begin("run", config)
        wait_for(lambda: len({file.parent for file in round.glob("claims/rollout-*/*")}) == 2)
        time.sleep(0.2)
        kill_all(killed)
        said = run.communicate(timeout=200)[0]
    assert run.returncode == 0, said
    assert (round / "manifest.json").exists() and not list(round.glob("claims/*/*"))
    states = Counter(job["state_type"] for job in jobs_of(prefect, "bereft"))
    assert states["CRASHED"] == 1, states
    assert len(list(round.rglob("part-*.parquet"))) == len(list((round / "receipts").iterdir()))


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
