"""Deployments: prefect.yaml as it ships, and `opd serve` with a config of one's own."""

import os
import re
import signal
import subprocess

import pytest
import yaml

from flows.deployments import schedule
from flows.limits import device_limits, run_limit
from pipeline.config import RunConfig, load_config
from pipeline.config.objectives import TYPES
from storage.errors import UserError
from tests.flows.prefect_server import ROOT, PrefectServer
from tests.flows.processes import wait_for
from tests.tiny import make_tiny

EXAMPLE = load_config(ROOT / "examples/gsm8k.toml")


def test_every_config_in_prefect_yaml_is_the_example_and_every_flow_is_there():
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    for deployment in document["deployments"]:
        file, name = deployment["entrypoint"].split(":")
        assert f"def {name}(" in (ROOT / file).read_text()
        if "config" in deployment["parameters"]:
            assert RunConfig.model_validate(deployment["parameters"]["config"]) == EXAMPLE
        else:
            assert deployment["parameters"] == {"store": EXAMPLE.store, "run": EXAMPLE.run, "number": 0}


@pytest.mark.parametrize("name", ["opd-tick/nightly", "opd-distill/whole-run", "opd-round/one-round"])
def test_a_deployment_of_prefect_yaml_plays_one_at_a_time_in_this_folder(prefect, name):
    found = prefect.call(f"/deployments/name/{name}")
    assert found["global_concurrency_limit"]["limit"] == 1
    assert found["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert found["work_pool_name"] == "opd" and "opd" in found["tags"]
    (step,) = found["pull_steps"]
    assert list(step.values()) == [{"directory": str(ROOT)}]
    schedules = [(each["schedule"]["cron"], each["schedule"]["timezone"]) for each in found["schedules"]]
    assert schedules == ([("0 2 * * *", "UTC")] if name == "opd-tick/nightly" else [])


def test_the_form_of_a_tick_describes_its_fields_and_offers_the_members_of_every_union(prefect):
    schema = prefect.call("/deployments/name/opd-tick/nightly")["parameter_openapi_schema"]
    sections = schema["definitions"]
    assert "oneOf" not in str(sections)
    assert len(sections["RunConfig"]["properties"]["objective"]["anyOf"]) == len(TYPES)
    assert sections["Rollout"]["properties"]["samples"]["description"] == "Rollouts per prompt."


@pytest.mark.parametrize("cron, timezone, said", [
    ("61 2 * * *", None, "--cron '61 2 * * *' is not a cron string"),
    ("every night", None, "--cron 'every night' is not a cron string"),
    ("0 2 * * *", "Mars/Olympus", "--timezone 'Mars/Olympus' is not a time zone"),
    (None, "UTC", "--timezone says how to read --cron"),
])
def test_a_schedule_that_is_none_is_refused(cron, timezone, said):
    with pytest.raises(UserError, match=re.escape(said)):
        schedule(cron, timezone)


@pytest.mark.parametrize("cron, url, said", [
    ("0 2 * * *", None, "needs a Prefect server"),
    ("0 2 * * *", "http://127.0.0.1:9/api", "http://127.0.0.1:9/api does not answer"),
    ("0 25 * * *", "http://127.0.0.1:9/api", "'0 25 * * *' is not a cron string"),
])
def test_serving_without_a_schedule_or_a_server_is_one_line(tmp_path, cron, url, said):
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    environment = {**plain, "PREFECT_HOME": str(tmp_path), **({"PREFECT_API_URL": url} if url else {})}
    command = PrefectServer.command("serve", ROOT / "examples/gsm8k.toml", "--cron", cron)
    stopped = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=100)
    assert stopped.returncode == 2 and said in stopped.stderr and stopped.stderr.count("\n") == 1, stopped.stderr


def test_a_served_run_ticks_from_any_folder_and_ends_whole_when_it_is_interrupted(prefect, tmp_path):
    make_tiny(tmp_path, run="'served'", rounds=1, **{"rollout.max_new_tokens": 600})
    command = prefect.command("serve", "config.toml", "--set", "store=store", "--set", "student.path=student",
                              "--cron", "0 2 * * *", "--timezone", "Europe/Zurich", "--name", "mine")
    serving = subprocess.Popen(command, cwd=tmp_path, env=prefect.environment, text=True, stdout=subprocess.PIPE,
                               start_new_session=True)
    try:
        said = [serving.stdout.readline() for _ in range(4)]
        assert "plays one round at '0 2 * * *' Europe/Zurich" in said[0] and "stop: Ctrl-C" in said[3]
        found = prefect.call("/deployments/name/opd-tick/mine")
        config = found["parameters"]["config"]
        assert said[2].strip() == f"watch: {prefect.url[:-4]}/deployments/deployment/{found['id']}"
        assert (config["store"], config["student"]["path"]) == (str(tmp_path / "store"), str(tmp_path / "student"))
        assert RunConfig.model_validate(config).model_dump(mode="json") == config and not found["paused"]
        assert found["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
        tick = prefect.schedule("opd-tick/mine", {})
        wait_for((tmp_path / "store/run=served/round=0/receipts/rollout-0.json").exists)
    finally:
        os.killpg(serving.pid, signal.SIGINT)  # as a terminal does
    assert serving.wait(60) == 0
    assert prefect.ended(tick)["state_type"] == "CANCELLED" and prefect.ended(tick)["parameters"]["config"] == config
    assert prefect.call("/deployments/name/opd-tick/mine")["paused"]
    assert not prefect.taken() & {run_limit(str(tmp_path / "store"), "served"), *device_limits()}
    relative = os.path.relpath(tmp_path / "student")
    again = prefect.opd("run", tmp_path / "config.toml", "--set", f"student.path={relative}")
    assert again.returncode == 0, again.stderr  # another spelling of a path is the same config


def test_the_servers_scheduler_lays_out_the_nights_to_come(prefect):
    """A cron that is accepted is not yet one that ticks: on SQLAlchemy 2.1 Prefect's scheduler fails at every one."""
    wanted = {"deployments": {"name": {"any_": ["nightly"]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}

    def nights() -> set[str]:
        """Starts that the scheduler made; other tests ask for ticks themselves."""
        found = prefect.call("/flow_runs/filter", wanted)
        return {run["expected_start_time"] for run in found if run["auto_scheduled"]}

    wait_for(lambda: len(nights()) >= 2, 90)
    assert all(night[10:16] == "T02:00" for night in nights())


def test_paths_are_told_from_names(tmp_path, monkeypatch):
    from pipeline.config.paths import absolute

    monkeypatch.chdir(tmp_path)
    document = EXAMPLE.model_dump(mode="json")
    document["store"] = "s3://bucket/prefix"
    document["mask"] = [{"type": "sql", "file": file} for file in ("unsure", "a.sql")]
    document["teacher"]["path"] = "Qwen/Qwen2.5-7B-Instruct"
    found = absolute(document)
    assert found["store"] == "s3://bucket/prefix" and found["teacher"]["path"] == "Qwen/Qwen2.5-7B-Instruct"
    assert found["student"]["path"] == str(tmp_path / "opd-models/quickstart-student")
    assert [mask["file"] for mask in found["mask"]] == ["unsure", str(tmp_path / "a.sql")]
    assert found["prompts"] == document["prompts"] and absolute(found) == found
    (tmp_path / "Qwen/Qwen2.5-7B-Instruct").mkdir(parents=True)
    assert absolute(document)["teacher"]["path"] == str(tmp_path / "Qwen/Qwen2.5-7B-Instruct")
