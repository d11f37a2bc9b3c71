"""Rounds through a real Prefect server that go wrong: a killed child, a killed worker, a killed server, no limit."""

import os
from collections import Counter
from datetime import UTC, datetime

import pytest

from flows.limits import device_limits
from pipeline.config import load_config
from tests.flows.prefect_server import prefect_server
from tests.flows.processes import kill_all, kill_at_work, wait_for
from tests.tiny import make_tiny

SHARDS = [f"{stage} {shard}" for stage in ("prompts", "rollout", "score", "mask") for shard in range(4)]
SHARDS += ["train 0", *(f"evaluate {shard}" for shard in range(6))]
NVIDIA_SMI = """#!/bin/sh
echo GPU-1c8f2a3b-0000-4000-8000-000000000001
echo GPU-5d2e9f7a-0000-4000-8000-000000000002
"""


def test_a_round_waits_for_the_device_and_a_shard_whose_child_is_killed_is_retried(prefect, tmp_path):
    config = make_tiny(tmp_path, run="'retried'", rounds=1, **{"rollout.max_new_tokens": 600})
    with prefect.held(device_limits()[0]):
        run = prefect.begin("run", config)
        receipts = tmp_path / "store/run=retried/round=0/receipts"
        (round,) = wait_for(lambda: prefect.flow_runs("retried round 0"), every=0.2)
        wait_for(lambda: f"waiting for {device_limits()[0]}" in prefect.logs(round["id"]), every=0.2)
        assert not receipts.exists()
    wait_for((receipts / "rollout-0.json").exists)
    finished = kill_at_work(run.pid, receipts)
    assert run.wait(120) == 0
    completed = {"state": {"type": {"any_": ["COMPLETED"]}}}
    wait_for(lambda: len(prefect.task_runs(round["id"], **completed)) == len(SHARDS) + 2, 30)  # plan and publish too
    again = [each["name"] for each in prefect.task_runs(round["id"], **completed) if each["run_count"] == 2]
    assert len(again) == 1 and again[0] in SHARDS and again[0] not in finished


def test_training_that_is_left_completes_the_flow_runs_and_is_waited_for(prefect, tmp_path):
    config = make_tiny(tmp_path, run="'left'", rounds=1)
    assert prefect.opd("run", config, "--leave-training").returncode == 3
    for name, message in (("distill left", "Training of round 0 is due"), ("left round 0", "Training is due")):
        (state,) = [each["state"] for each in prefect.flow_runs(name)]
        assert (state["type"], state["message"]) == ("COMPLETED", message)
    assert not (tmp_path / "store/run=left/round=0/manifest.json").exists()
    assert prefect.opd("run", config).returncode == 0
    assert (tmp_path / "store/run=left/round=0/manifest.json").exists()


def test_a_missing_limit_of_a_device_is_one_line_and_doctor_makes_it(prefect, tmp_path):
    config = make_tiny(tmp_path, run="'limitless'", rounds=1)
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    gpus = {"PATH": f"{program.parent}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "1,0"}
    stopped = prefect.opd("run", config, **gpus)
    assert stopped.returncode == 2 and "Traceback" not in stopped.stderr
    assert "has no concurrency limit opd:gpu:" in stopped.stderr and "GPU-5d2e9f7a" in stopped.stderr
    assert "`opd doctor --fix`" in prefect.flow_runs("distill limitless")[0]["state"]["message"]
    assert prefect.opd("doctor", "--fix", **gpus).returncode == 0
    limits = {each["name"]: each["limit"] for each in prefect.call("/v2/concurrency_limits/filter", {"limit": 200})}
    here = {name.split(":GPU-")[1][:8]: limit for name, limit in limits.items() if ":gpu:" in name}
    assert here["1c8f2a3b"] == here["5d2e9f7a"] == 1


def test_a_worker_killed_between_score_and_train_yields_one_round_and_no_shard_twice(prefect, tmp_path):
    config = load_config(make_tiny(tmp_path, run="'killed'", rounds=1))
    round = tmp_path / "store/run=killed/round=0"
    with prefect.worker("opd", tmp_path / "worker.log") as worker:
        begun = prefect.schedule("opd-distill/whole-run", {"config": config.model_dump(mode="json")})
        wait_for((round / "score.json").exists)
        kill_all(worker)
    assert not (round / "train.json").exists(), "killed too late to show anything"
    before = {file: file.stat().st_mtime_ns for file in (round / "receipts").iterdir()}
    killed_at = datetime.now(UTC).isoformat()
    prefect.call(f"/flow_runs/{begun}/set_state", {"state": {"type": "SCHEDULED"}, "force": True})
    assert prefect.opd("doctor", "--fix").stdout.count(": freed") >= 1  # else the leases end within 75 s
    with prefect.worker("opd", tmp_path / "worker.log"):
        assert wait_for(lambda: prefect.ended(begun), every=0.2)["state_type"] == "COMPLETED"
    assert (round / "manifest.json").exists()
    assert all(file.stat().st_mtime_ns == then for file, then in before.items())
    assert len(list(round.rglob("part-*.parquet"))) == len(SHARDS)
    left = Counter([*SHARDS, "publish"]) - Counter(file.stem.replace("-", " ") for file in before)
    (played,) = prefect.flow_runs("killed round 0")
    after = {"start_time": {"after_": killed_at}}
    wait_for(lambda: Counter(each["name"] for each in prefect.task_runs(played["id"], **after)) == left, 30)


@pytest.fixture
def second_server(tmp_path):
    with prefect_server(tmp_path / "home", PREFECT_SERVER_CORS_ALLOWED_ORIGINS="*") as server:
        yield server


def test_a_server_killed_and_restarted_during_a_round_yields_one_committed_round(second_server, tmp_path):
    careless = second_server.opd("doctor", "--fix").stdout
    for setting in ("CORS_ALLOWED_ORIGINS=http://127.0.0.1:", "CSRF_PROTECTION_ENABLED=true",
                    "CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem"):
        assert f"PREFECT_SERVER_{setting}" in careless
    config = make_tiny(tmp_path, run="'survivor'", rounds=1)
    round = tmp_path / "store/run=survivor/round=0"
    run = second_server.begin("run", config)
    wait_for((round / "receipts/rollout-0.json").exists)
    second_server.kill()
    second_server.start()
    said = run.communicate(timeout=200)[0]
    if run.returncode:  # the run may have ended with its server; the next one goes on from the store
        for each in second_server.call("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}):
            crashed = {"state": {"type": "CRASHED"}, "force": True}  # it could not say so: a person does
            second_server.call(f"/flow_runs/{each['id']}/set_state", crashed)
        assert second_server.opd("doctor", "--fix").stdout.count(": freed") >= 1
        again = second_server.opd("run", config)
        assert again.returncode == 0, said + again.stderr
    assert (round / "manifest.json").exists()
    assert len(list(round.rglob("part-*.parquet"))) == len(list((round / "receipts").iterdir())) == len(SHARDS)
    assert second_server.flow_runs("distill survivor")[-1]["state_type"] == "COMPLETED"
    assert len(second_server.call("/v2/concurrency_limits/filter", {"limit": 200})) == 2
    assert not second_server.taken(), "a slot that nobody can free"
