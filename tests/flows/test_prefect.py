"""Rounds through a real Prefect server: task runs per shard, and a killed worker's round that is finished once."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from pipeline.config import load_config
from tests.tiny import make_tiny

ROOT = Path(__file__).parents[2]
SHARDS = [f"{stage} {shard}" for stage in ("prompts", "rollout", "score", "mask") for shard in range(4)] + ["train 0"]
DEPLOY = """
from flows.distill import distill
distill.from_source(source={root!r}, entrypoint="flows/distill.py:distill").deploy(
    name="test", work_pool_name="pool", print_next_steps=False)
"""


def completed_task_runs(prefect, flow_run_ids: list[str]) -> Counter:
    """Names of the completed task runs of these flow runs."""
    found = prefect.call("/task_runs/filter", {"flow_runs": {"id": {"any_": flow_run_ids}},
                                               "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}})
    return Counter(run["name"] for run in found)


def round_flow_runs(prefect, run: str, number: int) -> list[str]:
    found = prefect.call("/flow_runs/filter", {"flow_runs": {"name": {"any_": [f"{run} round {number}"]}}})
    return [each["id"] for each in found]


def begun_task_runs(prefect, run: str, after: str) -> Counter:
    """Names of the task runs of round 0 of `run` that were begun after a moment, whatever became of them."""
    found = prefect.call("/task_runs/filter", {"flow_runs": {"id": {"any_": round_flow_runs(prefect, run, 0)}},
                                               "task_runs": {"start_time": {"after_": after}}})
    return Counter(each["name"] for each in found)


def test_the_api_lists_a_task_run_per_stage_shard_of_a_finished_round(prefect, tmp_path):
    config = make_tiny(tmp_path, run="'in-prefect'", rounds=1)
    done = subprocess.run([sys.executable, "-m", "flows.cli", "run", str(config)], env=prefect.environment, text=True,
                          capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
    flows = round_flow_runs(prefect, "in-prefect", 0)
    assert len(flows) == 1
    expected = Counter([*SHARDS, "plan"])
    wait_for(lambda: completed_task_runs(prefect, flows) == expected, 30)  # they reach the API through a queue


def test_a_users_error_is_not_retried(prefect, tmp_path):
    config = make_tiny(tmp_path, run="'wrong'", rounds=1)
    run = [sys.executable, "-m", "flows.cli", "run", str(config)]
    assert subprocess.run(run, env=prefect.environment, capture_output=True, timeout=200).returncode == 0
    shutil.rmtree(tmp_path / "teacher")
    longer = subprocess.run([*run, "--set", "rounds=2"], env=prefect.environment, text=True, capture_output=True,
                            timeout=200)
    assert longer.returncode == 2 and longer.stderr.strip().splitlines()[-1].startswith("opd: ")
    wanted = {"flow_runs": {"id": {"any_": round_flow_runs(prefect, "wrong", 1)}},
              "task_runs": {"state": {"type": {"any_": ["FAILED"]}}}}
    wait_for(lambda: prefect.call("/task_runs/filter", wanted), 30)
    assert [each["run_count"] for each in prefect.call("/task_runs/filter", wanted)] == [1]


def test_a_shard_whose_child_is_killed_is_retried_and_the_round_commits(prefect, tmp_path):
    config = make_tiny(tmp_path, run="'retried'", rounds=1, **{"rollout.max_new_tokens": 600})
    run = subprocess.Popen([sys.executable, "-m", "flows.cli", "run", str(config)], env=prefect.environment)
    receipts = tmp_path / "store/run=retried/round=0/receipts"
    wait_for(lambda: (receipts / "rollout-0.json").exists())
    os.kill(stage_child(run.pid), signal.SIGKILL)
    assert run.wait(120) == 0
    wanted = {"flow_runs": {"id": {"any_": round_flow_runs(prefect, "retried", 0)}},
              "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    wait_for(lambda: len(prefect.call("/task_runs/filter", wanted)) == len(SHARDS) + 1, 30)
    again = [each["name"] for each in prefect.call("/task_runs/filter", wanted) if each["run_count"] == 2]
    assert len(again) == 1 and again[0].startswith("rollout")


def stage_child(pid: int) -> int:
    """The process that computes: the one child of the fork server that `pid` started."""
    (child,) = (grandchild for child in children(pid) for grandchild in children(child))
    return child


def start_worker(prefect, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "pool", "--type", "process"]
    with log.open("ab") as file:
        return subprocess.Popen(command, env=prefect.environment, stdout=file, stderr=file, start_new_session=True)


def wait_for(what, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], text=True, capture_output=True).stdout.split()
    return [int(each) for each in found]


def descendants(pid: int) -> list[int]:
    """Processes started by `pid` and by those."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL the worker, its flow runs and their children: what a machine that goes down does."""
    for pid in (process.pid, *descendants(process.pid)):
        with contextlib.suppress(ProcessLookupError):  # ended with its parent
            os.kill(pid, signal.SIGKILL)
    process.wait()


def test_a_worker_killed_between_score_and_train_yields_one_round_and_no_shard_twice(prefect, tmp_path):
    config = load_config(make_tiny(tmp_path, run="'killed'", rounds=1))
    python = [sys.executable, "-m", "prefect"]
    subprocess.run([*python, "work-pool", "create", "pool", "--type", "process"], env=prefect.environment, check=True,
                   capture_output=True)
    subprocess.run([sys.executable, "-c", DEPLOY.format(root=str(ROOT))], env=prefect.environment, check=True,
                   capture_output=True)
    deployment = prefect.call("/deployments/name/opd-distill/test")["id"]
    begun = prefect.call(f"/deployments/{deployment}/create_flow_run",
                         {"parameters": {"config": config.model_dump(mode="json")}})["id"]
    round = tmp_path / "store/run=killed/round=0"
    worker = start_worker(prefect, tmp_path / "worker.log")
    wait_for(lambda: (round / "score.json").exists())
    kill_all(worker)
    assert not (round / "train.json").exists(), "killed too late to show anything"
    before = {file: file.stat().st_mtime_ns for file in (round / "receipts").iterdir()}
    killed_at = datetime.now(UTC).isoformat()
    worker = start_worker(prefect, tmp_path / "worker.log")
    try:
        prefect.call(f"/flow_runs/{begun}/set_state", {"state": {"type": "SCHEDULED"}, "force": True})
        wait_for(lambda: prefect.call(f"/flow_runs/{begun}")["state_type"] == "COMPLETED")
    finally:
        kill_all(worker)
    assert (round / "manifest.json").exists()
    assert all(file.stat().st_mtime_ns == then for file, then in before.items())
    assert len(list(round.rglob("part-*.parquet"))) == 4 * 4 + 1
    left = Counter(SHARDS) - Counter(file.stem.replace("-", " ") for file in before)
    wait_for(lambda: begun_task_runs(prefect, "killed", killed_at) == left, 30)  # what had a receipt was left
