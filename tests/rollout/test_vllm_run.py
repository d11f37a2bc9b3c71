"""`opd run` with vLLM: an engine in a process of its own, which belongs to the run's child and outlives its stages."""

import json
import os

import pytest

from flows.cli import main
from storage.objects import open_store
from storage.rounds import Round
from tests.flows.processes import descendants
from tests.rollout.conftest import ENGINE_SETTINGS, save_student
from tests.tiny import make_tiny


@pytest.mark.timeout(240)
def test_a_run_keeps_its_engine_from_round_to_round_and_ends_it(vllm_engine, tmp_path, capsys):
    config, before = make_tiny(tmp_path), descendants(os.getpid())
    for name, seed in (("student", 1), ("teacher", 2)):
        save_student(tmp_path / name, seed)
    settings = [word for setting in [*ENGINE_SETTINGS, "train.learning_rate=0.01"] for word in ("--set", setting)]
    assert main(["run", str(config), "--json", *settings]) == 0
    assert [each["round"] for each in json.loads(capsys.readouterr().out)["played"]] == [0, 1]
    store = open_store(tmp_path / "store")
    first, second = ([each["engine_proof"] for each in Round(store, "tiny", number).timings()
                      if each["stage"] == "rollout"] for number in range(2))
    assert len(first) == len(second) == 4 and "moved" not in first[0]
    assert second[0]["moved"] > 1e-3 > 100 * second[0]["log_prob_difference"], "reloaded, by the process of round 0"
    assert not any("vllm_process" in line for line in map(command, set(descendants(os.getpid())) - set(before)))


def command(pid: int) -> str:
    """Of a process, empty for one that is gone."""
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except OSError:
        return ""
