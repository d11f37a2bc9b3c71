"""Several children at once: which shard goes to whom, on which GPU, what is kept, and that the bytes stay the same."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from flows import limits
from flows.child import Child
from flows.cli import main
from flows.local import play_stage
from flows.team import Seat, Team, compute
from flows.work import Work
from pipeline.config import load_config
from pipeline.config.workers import Workers
from pipeline.context import silent
from storage.claims import Claims
from storage.errors import UserError
from storage.objects import open_store
from storage.rounds import Round
from tests.tiny import make_tiny

GPUS = [f"GPU-0{letter}000000-0000-4000-8000-000000000000" for letter in "abcd"]
LONG = {"rounds": 1, "prompts.per_round": 6, "prompts.per_shard": 2, "rollout.max_new_tokens": 200}
"""Three shards, of half a second each."""


@pytest.fixture
def round(tmp_path) -> Round:
    return Round(open_store(tmp_path / "claimed", create=True), "r", 0)


@pytest.fixture
def four_gpus(tmp_path, monkeypatch):
    """An nvidia-smi that knows of four GPUs."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n" + "".join(f"echo {gpu}\n" for gpu in GPUS))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    limits.installed_gpus.cache_clear()
    yield
    limits.installed_gpus.cache_clear()


def config(ranks: int = 1, **engine) -> dict:
    """What a team reads of run.json."""
    return {"rollout": {"engine": {"type": "vllm", **engine}}, "train": {"ranks": ranks}}


def test_a_shard_is_scored_while_others_are_written_and_nobody_changes_models_without_need(round):
    work = Work(round, {"rollout": [0, 1, 2], "score": [0, 1, 2]})
    assert [work.take(None), work.take(None)] == [("rollout", 0), ("rollout", 1)]
    work.done("rollout", 0)
    assert work.take("rollout") == ("rollout", 2), "its student is loaded"
    work.done("rollout", 1)
    assert work.take("rollout") == ("score", 0), "while shard 2 is being written"
    work.done("score", 0)
    assert work.take("score") == ("score", 1)
    work.done("score", 1)
    work.done("rollout", 2)
    assert work.take("score") == ("score", 2)
    work.done("score", 2)
    assert work.take("score") is None


def test_after_an_error_nothing_more_is_handed_out(round):
    work = Work(round, {"score": [0, 1]})
    place = work.take(None)
    work.stop(UserError("broken"), place)
    assert work.take("score") is None and str(work.error) == "broken"


def test_a_claim_is_taken_over_once_its_owner_is_silent(round):
    others = Claims(round.store, "r", 0, lease_s=60)
    assert others.take("score", 0)
    mine = Claims(round.store, "r", 0, lease_s=0)
    mine.look()
    assert mine.take("score", 0), "watched for longer than the lease: taken over"
    others.renew()
    others.give_back("score", 0)
    assert mine.look() == {("score", 0): 1}, "who lost a claim does not delete it"


def test_each_process_has_a_gpu_and_an_engine_of_two_gpus_has_two(four_gpus):
    with Team(Workers()) as team:
        assert [seat.gpus for seat in team.seats(["score"], config())] == [(gpu,) for gpu in GPUS]
        pairs = [tuple(GPUS[:2]), tuple(GPUS[2:])]
        assert [seat.gpus for seat in team.seats(["rollout"], config(tensor_parallel=2))] == pairs
        assert [seat.gpus for seat in team.seats(["train"], config(ranks=3))] == [tuple(GPUS[:3])]
        assert [seat.gpus for seat in team.seats(["mask"], config(ranks=3))] == [(GPUS[0],)]
        assert team.streams(config()) and not team.streams(config(tensor_parallel=2))
        assert team.seats(["score"], config()) == team.seats(["score"], config()), "kept from round to round"
    assert not Team(Workers(processes=1)).streams(config())
    assert not Team(Workers(stream=False)).streams(config())


def test_more_processes_than_gpus_are_one_line(four_gpus):
    with pytest.raises(UserError, match="5 processes need 5 GPUs, and 4 are visible here: lower workers.processes"):
        Team(Workers(processes=5)).seats(["score"], config())
    with pytest.raises(UserError, match="3 processes with 2 for each engine need 6 GPUs"):
        Team(Workers(processes=3)).seats(["rollout"], config(data_parallel=2))


def test_a_vllm_engine_stays_from_stage_to_stage_and_other_children_end_with_theirs():
    seat = Seat((), pinned=False, keeps_engine=True)
    pids = []
    for stage in ("rollout", "score", "rollout", "score"):
        child = seat.child(stage)
        child.call("rest", silent)
        pids.append(child._process.pid)
    assert pids[0] == pids[2] and pids[1] != pids[3]
    seat.rest()
    assert seat._engine.alive and not seat._other.alive
    seat.close()
    assert not seat._engine.alive


@pytest.mark.parametrize("end", ["close", "kill"])
def test_what_a_child_started_ends_with_it(end):
    with Child() as child:
        child.call("rest", silent)
        engine = subprocess.Popen(["sleep", "60"], process_group=child._process.pid)
        getattr(child, end)()
        assert engine.wait(10) == -9


def test_two_processes_score_what_is_written_while_more_is_being_written_and_write_what_one_writes(tmp_path):
    settings = load_config(make_tiny(tmp_path, **LONG))
    stores = {name: str(tmp_path / name) for name in ("alone", "streamed")}
    assert main(["run", str(tmp_path / "config.toml"), "--set", f"store={stores['alone']}"]) == 0
    where = {"store": stores["streamed"], "run": "tiny", "number": 0}
    with Child() as child:
        child.call("start", silent, config={**settings.model_dump(mode="json"), "store": stores["streamed"]})
        child.call("plan", silent, **where)
    play_stage(where, "prompts", [0, 1, 2], lambda title: silent)
    begun, ended = {}, {}

    def play(child: Child, stage: str, shard: int) -> None:
        begun[stage, shard] = time.monotonic()
        child.call("shard", silent, stage=stage, shard=shard, **where)
        ended[stage, shard] = time.monotonic()

    stages = ["rollout", "score"]
    work = Work(Round(open_store(stores["streamed"]), "tiny", 0), {stage: [0, 1, 2] for stage in stages})
    with Team(Workers(processes=2)) as team:
        compute(team.seats(stages, config(type="transformers")), work, play)
    assert all(ended["rollout", shard] < begun["score", shard] for shard in range(3))
    assert min(begun["score", shard] for shard in range(3)) < max(ended["rollout", shard] for shard in range(3))
    assert main(["run", str(tmp_path / "config.toml"), "--set", f"store={stores['streamed']}"]) == 0
    assert files_of(stores["streamed"]) == files_of(stores["alone"])


def files_of(store: str) -> dict[str, bytes]:
    """Every file but the timings, which are never hashed."""
    return {str(path.relative_to(store)): path.read_bytes() for path in Path(store).rglob("*")
            if path.is_file() and "timings" not in path.parts}


def test_a_lease_that_is_too_short_is_refused(tmp_path):
    with pytest.raises(UserError, match="workers.lease_s = 2 is shorter"):
        load_config(make_tiny(tmp_path), ["workers.lease_s=2"])
