"""Scheduled ticks of the deployment in prefect.yaml, through the API alone: what they play, refuse, show and leave out.

The ticks are played once for the module, by a real worker: about a minute.
"""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.artifacts import artifact_key
from flows.limits import device_limits
from pipeline.config import load_config
from tests.flows.processes import wait_for
from tests.tiny import make_tiny

RUN = "nightly_x.1"
SHARDS = [f"{stage} {shard}" for stage in ("prompts", "rollout", "score", "mask") for shard in range(4)] + ["train 0"]
ELSEWHERE = """
import sys
from pathlib import Path
from flows.tick import tick
from flows.artifacts import artifact_key
from pipeline.config import load_config

if __name__ == "__main__":
    state = tick(load_config(Path(sys.argv[1])), return_state=True)
    print(state.type.value, state.name, state.message, sep="|")
"""
AGAIN = """
import sys
import time
from prefect import flow
from flows import artifacts
from flows.round import distill_round

artifacts.LONG_S, artifacts.EVERY_S = 0.0, 0.2

@flow(name="a long stage")
def long_stage():
    progress = artifacts.StageProgress("long_stage", 3, "score", 2)
    for shard in (1, 2):
        tell = progress.shard(shard)
        for done in range(100):
            tell("tokens", done, 100)
            time.sleep(0.005)
    progress.finish()

if __name__ == "__main__":
    long_stage()
    print(distill_round(sys.argv[1], sys.argv[2], 0))
"""


@dataclass(frozen=True)
class Ticks:
    """Flow runs by what they were for, and what was said beside them."""

    folder: Path
    server: object
    runs: dict[str, dict]
    elsewhere: str

    def round(self, number: int) -> dict:
        """The flow run that played a round."""
        (found,) = self.server.flow_runs(f"{RUN} round {number}")
        return found

    def artifacts(self, flow_run: dict) -> dict[str, dict]:
        """Artifacts of a flow run by key."""
        found = self.server.call("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run["id"]]}}})
        return {each["key"]: each for each in found}


@pytest.fixture(scope="module")
def ticks(prefect, tmp_path_factory):
    """Scheduled ticks of a run of two rounds: first, overlapping, second, late; and one from elsewhere in the first."""
    folder = tmp_path_factory.mktemp("ticks")
    config = make_tiny(folder, run=f"'{RUN}'", rounds=2,
                       tracker=f"[{{type = 'tensorboard', folder = '{folder / 'board'}'}}]")
    script = folder / "elsewhere.py"
    script.write_text(ELSEWHERE)
    partial = {"config": load_config(config).model_dump(mode="json", exclude_unset=True)}
    runs = {}
    with prefect.worker("opd", folder / "worker.log"):
        with prefect.held(device_limits()[0]):  # the first tick goes no further than its plan
            first = prefect.schedule("opd-tick/nightly", partial)
            wait_for((folder / f"store/run={RUN}/round=0/plan.json").exists)
            overlapping = prefect.schedule("opd-tick/nightly", partial)
            elsewhere = subprocess.run([sys.executable, script, config], env=prefect.environment, text=True,
                                       capture_output=True, timeout=100)
            runs["overlapping"] = wait_for(lambda: prefect.ended(overlapping), every=0.2)
        runs["first"] = wait_for(lambda: prefect.ended(first), every=0.2)
        for name in ("second", "late"):
            identity = prefect.schedule("opd-tick/nightly", partial)
            runs[name] = wait_for(lambda: prefect.ended(identity), every=0.2)
    return Ticks(folder, prefect, runs, elsewhere.stdout.strip() or elsewhere.stderr)


def test_each_scheduled_tick_commits_the_next_round(ticks):
    assert [ticks.runs[name]["state_type"] for name in ("first", "second")] == ["COMPLETED"] * 2
    for number, name in enumerate(("first", "second")):
        round = ticks.round(number)
        manifest = ticks.folder / f"store/run={RUN}/round={number}/manifest.json"
        assert manifest.exists() and round["state_type"] == "COMPLETED"
        message = ticks.runs[name]["state"]["message"]
        assert message.startswith(f"Round {number} of {RUN} is committed (") and f"{1 - number} of 2 rounds" in message


def test_a_tick_that_overlaps_is_cancelled_with_one_line(ticks):
    overlapping = ticks.runs["overlapping"]
    assert (overlapping["state_type"], overlapping["run_count"]) == ("CANCELLED", 0)
    assert overlapping["state"]["message"] == "Deployment concurrency limit reached."


def test_a_tick_of_the_same_run_from_elsewhere_is_refused_with_one_line(ticks):
    kind, name, message = ticks.elsewhere.split("|")
    assert (kind, name) == ("CANCELLED", "Refused")
    assert message.startswith(f"{RUN} is being played by another flow run") and "\n" not in message


def test_a_tick_after_the_last_round_does_nothing_and_says_so(ticks):
    late = ticks.runs["late"]
    assert late["state_type"] == "COMPLETED"
    assert late["state"]["message"] == f"All 2 rounds of {RUN} are committed: nothing to do"
    assert not ticks.server.flow_runs(f"{RUN} round 2")


def test_every_shard_of_a_round_is_a_completed_task_run_of_a_flow_run_with_its_tags(ticks):
    round = ticks.round(0)
    expected = Counter([*SHARDS, *(f"evaluate {shard}" for shard in range(6)), "plan", "publish"])
    found = wait_for(lambda: completed_as(ticks, round, expected), 30)  # they reach the API through a queue
    assert not any(run["tags"] for run in found), "a task run with a tag costs a request that a busy server refuses"
    assert set(round["tags"]) == {"opd", f"run:{RUN}", "round:0"}
    assert {"opd", f"run:{RUN}"} <= set(ticks.runs["first"]["tags"])


def completed_as(ticks, round: dict, expected: Counter) -> list[dict] | None:
    found = ticks.server.task_runs(round["id"], state={"type": {"any_": ["COMPLETED"]}})
    return found if Counter(run["name"] for run in found) == expected else None


def test_trackers_are_fed_after_each_round_by_a_task_run_of_the_tick(ticks):
    for number, name in enumerate(("first", "second")):
        (track,) = ticks.server.task_runs(ticks.runs[name]["id"], name={"any_": [f"track {number}"]})
        assert track["state_type"] == "COMPLETED"
        assert "trackers: {'tensorboard': " in ticks.server.logs(ticks.runs[name]["id"])


def test_a_flow_runs_parameters_are_the_whole_resolved_config(ticks):
    config = load_config(ticks.folder / "config.toml")
    assert ticks.runs["first"]["parameters"] == {"config": config.model_dump(mode="json")}


def test_a_committed_round_has_a_report_and_a_table_of_statistics(ticks):
    for number in (0, 1):
        made = ticks.artifacts(ticks.round(number))
        report, table = (made[artifact_key(RUN, kind)] for kind in ("report", "statistics"))
        assert report["type"] == "markdown" and "top-k overlap" in report["data"]
        rows = {row["metric"]: row["round"] for row in json.loads(table["data"])}
        assert table["type"] == "table" and rows["rollouts"] == "16" and rows["prompts"] == "8"
        assert str(number) in report["description"]


def test_nothing_that_a_model_or_a_data_set_wrote_reaches_prefect(ticks):
    import pyarrow.parquet as pq

    files = list((ticks.folder / "store").rglob("rollouts/*.parquet"))
    texts = [text for file in files for text in pq.read_table(file)["response_text"].to_pylist() if len(text) > 8]
    assert len(texts) > 20
    home = Path(ticks.server.environment["PREFECT_HOME"])
    database = b"".join(file.read_bytes() for file in home.glob("prefect.db*"))
    assert RUN.encode() in database
    for text in [*texts, "What is 3 + 6?"]:
        assert text.encode() not in database and json.dumps(text)[1:-1].encode() not in database


def test_a_users_error_is_one_line_and_is_not_retried(ticks):
    (ticks.folder / "teacher").rename(ticks.folder / "gone")
    stopped = ticks.server.opd("run", ticks.folder / "config.toml", "--set", "rounds=3")
    line = stopped.stderr.strip().splitlines()[-1].removeprefix("opd: ")
    assert stopped.returncode == 2 and "teacher" in line
    whole = ticks.server.flow_runs(f"distill {RUN}")[0]
    assert [run["state"]["message"] for run in (ticks.round(2), whole)] == [line, line]
    failed = wait_for(lambda: ticks.server.task_runs(ticks.round(2)["id"], state={"type": {"any_": ["FAILED"]}}), 30)
    assert [each["run_count"] for each in failed] == [1]


def test_a_long_stage_shows_its_progress_and_a_report_that_fails_costs_a_warning(ticks):
    """A committed round that is played again is only published again; here a shard of it is gone."""
    next((ticks.folder / f"store/run={RUN}/round=0/rollouts").iterdir()).unlink()
    script = ticks.folder / "again.py"
    script.write_text(AGAIN)
    again = subprocess.run([sys.executable, script, ticks.folder / "store", RUN], env=ticks.server.environment,
                           text=True, capture_output=True, timeout=100)
    assert again.returncode == 0 and "'round': 0" in again.stdout, again.stderr
    (warning,) = [line for line in again.stderr.splitlines() if "WARNING" in line]
    assert "the report cannot be shown: " in warning and "Traceback" not in again.stderr
    progress = latest(ticks.server, artifact_key("long_stage", "progress"))
    assert (progress["type"], progress["data"]) == ("progress", 100.0)
    assert progress["description"] == "Round 3 of long_stage: score, 2 shards"


def latest(server, key: str) -> dict:
    (found,) = server.call("/artifacts/latest/filter", {"artifacts": {"key": {"any_": [key]}}})
    return found


def test_what_prefect_stores_of_exceptions_is_json(ticks):
    """Prefect pickles them unless it is told otherwise; the test above has left some."""
    results = Path(ticks.server.environment["PREFECT_RESULTS_LOCAL_STORAGE_PATH"])
    files = [file for file in results.rglob("*") if file.is_file()]
    assert files
    for file in files:
        json.loads(file.read_text())
