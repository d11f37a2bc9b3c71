"""Ctrl-C while several children compute under a real Prefect server: they end, none is started again, and soon."""

import signal
import time

import pytest

from tests.flows.processes import stage_children, wait_for
from tests.tiny import make_tiny

LONG = {"rounds": 1, "prompts.per_round": 2, "prompts.per_shard": 1, "rollout.samples": 400,
        "rollout.max_new_tokens": 600, "rollout.engine.batch_size": 1}
"""Two shards of a minute or more: the tiny student ends after 250 tokens on average."""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("processes", [1, 2])
def test_after_ctrl_c_no_child_is_started_again_and_the_run_ends_in_seconds(prefect, tmp_path, processes):
    name = f"cancelled-{processes}"
    run = prefect.begin("run", make_tiny(tmp_path, run=f"'{name}'", **LONG, **{"workers.processes": processes}))
    round = tmp_path / f"store/run={name}/round=0"
    try:
        wait_for((round / "prompts.json").exists)
        before = wait_for(lambda: len(found := stage_children(run.pid)) == processes and found, 60)
        time.sleep(1)  # they have their shard
        assert stage_children(run.pid) == before
        run.send_signal(signal.SIGINT)
        interrupted, later = time.monotonic(), set()
        while run.poll() is None and time.monotonic() - interrupted < 60:
            later |= set(stage_children(run.pid)) - set(before)
            time.sleep(0.02)
        took_s = time.monotonic() - interrupted
    finally:
        run.kill()
    said = run.communicate()[0]
    assert run.returncode == 130 and "opd: interrupted" in said, said
    assert took_s < 30 and not later, said
    assert not list((round / "receipts").glob("rollout-*"))
    (played,) = prefect.flow_runs(f"{name} round 0")
    over = {"state": {"type": {"any_": ["FAILED", "CRASHED"]}}}
    shards = wait_for(lambda: len(found := prefect.task_runs(played["id"], **over)) == processes and found, 30)
    assert [(each["name"], each["run_count"]) for each in sorted(shards, key=lambda each: each["name"])] == [
        (f"rollout {shard}", 1) for shard in range(processes)]
