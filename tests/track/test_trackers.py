"""Each tracker with its real library: what it shows, read back by that library, is the steps table, each value once."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from pipeline.config.trackers import Mlflow, TensorBoard, Trackio, Wandb
from pipeline.track.feed import describe, feed
from pipeline.track.points import RoundPoints
from storage.snapshot import take_snapshot
from tests.track.conftest import SECRET_TEXT
from tests.track.fake_wandb import FakeWandb

API_KEY = "0123456789abcdef0123456789abcdef01234567"


def needs(library: str):
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


@pytest.fixture(scope="module")
def expected(store) -> dict:
    """(name, step) -> value of all three rounds."""
    points = RoundPoints(store, "made", 2)
    return {(name, step): value for number in range(3) for step, values in points(number)
            for name, value in values.items()}


@pytest.fixture(scope="module")
def key(store) -> str:
    return describe(take_snapshot(store, "made"), "made").key


def feed_out_of_order_and_twice(store, tracker) -> None:
    """Round 1 brings round 0 along, round 0 is fed again when it is there, round 2 comes last."""
    for number in (1, 0, 2):
        assert feed(store, "made", number, [tracker]) == {tracker.type: "ok"}


def assert_free_of(folder, *secrets: str) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    secrets = [each for each in secrets if len(each) > 5]  # a host named `vm` is in any random bytes
    assert files and secrets
    for file in files:
        assert not any(secret.encode() in file.read_bytes() for secret in secrets), file


@needs("tensorboard")
def test_tensorboard_shows_the_steps_table(store, expected, key, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    feed_out_of_order_and_twice(store, TensorBoard(folder=str(tmp_path)))
    events = EventAccumulator(str(tmp_path / key), size_guidance={"scalars": 0})
    events.Reload()
    shown = [(tag, event.step, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
    assert len(shown) == len(expected)
    assert {(tag, step): value for tag, step, value in shown} == pytest.approx(expected, rel=1e-6)  # float32
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == [1, 2, 3, 4, 5, 6]
    (config,) = events.Tensors("config")
    assert b"teacher_topk_lsm" in config.tensor_proto.string_val[0]
    assert_free_of(tmp_path, SECRET_TEXT, "hidden-in-an-address")
    assert len(list((tmp_path / key).iterdir())) == 4


@needs("wandb")
def test_wandb_offline_uploads_the_steps_table_once(store, expected, key, tmp_path, monkeypatch):
    folder = tmp_path / "offline"
    feed_out_of_order_and_twice(store, Wandb(mode="offline", folder=str(folder)))
    assert sorted(each.name for each in folder.iterdir()) == [f"offline-run-{n:06d}-{key}" for n in range(3)]
    assert_free_of(folder, SECRET_TEXT, "hidden-in-an-address", os.uname().nodename)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    with FakeWandb() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        subprocess.run([sys.executable, "-m", "wandb", "sync", str(folder)], check=True, capture_output=True,
                       cwd=folder,
                       env={**os.environ, "WANDB_ERROR_REPORTING": "false"}, timeout=60)
    assert wandb_rows(server, key) == expected


@needs("wandb")
def test_wandb_online_resumes_its_run_and_takes_each_step_once(store, expected, key, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    tracker = Wandb(entity="me", folder=str(tmp_path / "online"))
    with FakeWandb() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        assert feed(store, "made", 1, [tracker]) == {"wandb": "ok"}
        whole = server.runs[key]
        whole["rows"], whole["summary"] = whole["rows"][:4], {"round/round": 0.0}  # as if the upload had broken off
        assert sorted(row["_step"] for row in whole["rows"]) == [0, 1, 2, 3]
        assert feed(store, "made", 0, [tracker]) == {"wandb": "ok"}
        assert feed(store, "made", 2, [tracker]) == {"wandb": "ok"}
    assert wandb_rows(server, key) == expected
    assert whole["displayName"] == "made" and whole["tags"] == ["opd-rounds", "teacher_topk_lsm"]
    assert json.loads(whole["config"])["train"]["value"] == {"learning_rate": 2e-6}
    assert {path.split("/")[1] for path in server.calls} <= {"graphql", "files"}
    assert_free_of(tmp_path, SECRET_TEXT, "hidden-in-an-address", API_KEY)


def wandb_rows(server: FakeWandb, key: str) -> dict:
    """What the server keeps of the run; a value that came twice fails."""
    rows = [(name, row["_step"], value) for row in server.runs[key]["rows"] for name, value in row.items()
            if not name.startswith("_")]
    shown = {(name, step): value for name, step, value in rows}
    assert len(rows) == len(shown)
    return shown


@needs("mlflow")
def test_mlflow_shows_the_steps_table(store, expected, key, tmp_path):
    from mlflow import MlflowClient

    from pipeline.track.mlflow import MlflowRun

    tracker = Mlflow(uri=f"sqlite:///{tmp_path}/mlflow.db")
    points = RoundPoints(store, "made", 2)
    broken_off = MlflowRun(tracker)
    assert broken_off.open(describe(take_snapshot(store, "made"), "made")) == 0
    broken_off.log(0, points(0)[:2])
    for number in (2, 0):
        assert feed(store, "made", number, [tracker]) == {"mlflow": "ok"}
    client = MlflowClient(tracking_uri=tracker.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("opd-rounds").experiment_id])
    shown = [(name, metric.step, metric.value) for name in run.data.metrics
             for metric in client.get_metric_history(run.info.run_id, name)]
    assert len(shown) == len(expected) and {(name, step): value for name, step, value in shown} == expected
    assert run.info.run_name == "made" and run.data.tags["opd.key"] == key
    assert run.data.params["train.learning_rate"] == "2e-06" and run.data.params["prompts.source.type"] == "file"
    assert run.info.status == "FINISHED"
    assert_free_of(tmp_path, SECRET_TEXT, "hidden-in-an-address")


@needs("trackio")
def test_trackio_shows_the_steps_table(store, expected, key, tmp_path):
    feed_out_of_order_and_twice(store, Trackio(folder=str(tmp_path), project="made-project"))
    read = ("import json; from trackio.sqlite_storage import SQLiteStorage as s; import trackio\n"
            "(run,) = trackio.Api().runs('made-project')\n"
            "print(json.dumps([run.id, run.name, run.config, s.get_logs('made-project', run.name, run_id=run.id)]))")
    printed = subprocess.run([sys.executable, "-c", read], env={**os.environ, "TRACKIO_DIR": str(tmp_path)}, check=True,
                             capture_output=True, text=True, timeout=60).stdout
    found_key, name, config, logs = json.loads(printed)
    shown = [(column, row["step"], value) for row in logs for column, value in row.items()
             if column not in ("step", "timestamp")]
    assert len(shown) == len(expected) and {(name, step): value for name, step, value in shown} == expected
    assert [row["step"] for row in logs] == [0, 1, 2, 3, 4, 5, 6]
    assert (found_key, name, config["train"]) == (key, "made", {"learning_rate": 2e-6})
    assert_free_of(tmp_path, SECRET_TEXT, "hidden-in-an-address")
