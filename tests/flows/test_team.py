"""Several children at once: which shard goes to whom, on which GPU, what is kept, and that the bytes stay the same."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from flows import limits
from flows.child import Child, ChildFailed
from flows.cli import main
from flows.local import distill, play_stage
from flows.team import Seat, Team, compute
from flows.work import Work
from pipeline.config import load_config
from pipeline.config.workers import Workers
from pipeline.context import silent
from pipeline.stages import commit_round
from storage.claims import Claims
from storage.errors import IntegrityError, UserError
from storage.layout import STAGES
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


@pytest.mark.parametrize("gpus", [(), GPUS[:1]])
def test_a_vllm_engine_stays_from_stage_to_stage_and_on_a_gpu_other_children_end_with_theirs(gpus):
    seat = Seat(gpus, pinned=False, keeps_engine=True)
    pids = []
    for stage in ("rollout", "score", "rollout", "score"):
        child = seat.child(stage)
        child.call("rest", silent)
        pids.append(child._process.pid)
    assert pids[0] == pids[2] and (pids[1] != pids[3]) == bool(gpus)
    seat.rest()
    assert seat._engine.alive and seat._other.alive == (not gpus)
    seat.close()
    assert not seat._engine.alive and not seat._other.alive


def test_one_child_serves_a_run_without_a_gpu_and_writes_what_children_of_one_stage_each_write(tmp_path):
    config = load_config(make_tiny(tmp_path, rounds=2))
    distill(config, lambda title: silent)
    where = {"store": str(tmp_path / "apart"), "run": "tiny"}
    with Child() as child:
        child.call("start", silent, config={**config.model_dump(mode="json"), "store": where["store"]})
    pids = {name: set() for name in ("together", "apart")}
    for number in range(2):
        together, apart = (Round(open_store(store), "tiny", number) for store in (config.store, where["store"]))
        with Child() as child:
            child.call("plan", silent, **where, number=number)
        for stage in STAGES:
            play_stage({**where, "number": number}, stage, apart.pending(stage), lambda title: silent)
        commit_round(apart)
        assert apart.manifest().id == together.manifest().id
        for name, round in (("together", together), ("apart", apart)):
            pids[name] |= {timing["pid"] for timing in round.timings()}
    stages = {timing["stage"] for timing in together.timings()}
    assert len(pids["together"]) == 1 and len(pids["apart"]) == 2 * len(stages)


def test_a_child_that_died_between_two_stages_is_followed_by_another():
    seat = Seat((), pinned=False, keeps_engine=False)
    child = seat.child("rollout")
    child.call("rest", silent)
    os.kill(child._process.pid, signal.SIGSTOP)  # alive to the eye, and dead before it answers
    threading.Timer(0.3, os.kill, (child._process.pid, signal.SIGKILL)).start()
    first = child._process.pid
    seat.rest()
    seat.child("score").call("rest", silent)
    assert seat.child("score")._process.pid != first
    seat.close()


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
    begun, ended, scoring = {}, {}, threading.Event()

    def play(child: Child, stage: str, shard: int) -> None:
        begun[stage, shard] = time.monotonic()
        if stage == "score":
            scoring.set()
        elif shard == 2:
            assert scoring.wait(60), "while the last rollouts are still to come"
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


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder whose `store` holds a round of three shards with their rollouts, and whose `scored` all of its scores,
    each shard finished before the next was begun."""
    folder = tmp_path_factory.mktemp("written")
    settings = load_config(make_tiny(folder, **LONG)).model_dump(mode="json")
    where = at(folder / "store")
    with Child() as child:
        child.call("start", silent, config=settings)
        child.call("plan", silent, **where)
    for stage in ("prompts", "rollout"):
        play_stage(where, stage, [0, 1, 2], lambda title: silent)
    shutil.copytree(folder / "store", folder / "scored")
    with Child() as child:
        for shard in range(3):
            child.call("shard", silent, stage="score", shard=shard, **at(folder / "scored"))
    return folder


def at(store: Path) -> dict:
    return {"store": str(store), "run": "tiny", "number": 0}


def score(store: Path, before_call=lambda child, shard: None) -> tuple[dict[int, float], dict[int, float]]:
    """Score all shards that are left on one seat; when each was begun, and when it was finished."""
    begun, ended = {}, {}

    def play(child, stage: str, shard: int) -> None:
        begun[shard] = time.monotonic()
        before_call(child, shard)
        child.call("shard", silent, stage=stage, shard=shard, **at(store))
        ended[shard] = time.monotonic()

    round = Round(open_store(str(store)), "tiny", 0)
    with Team(Workers()) as team:
        compute(team.seats(["score"], config(type="transformers")), Work(round, {"score": round.pending("score")}),
                play)
    return begun, ended


def test_the_next_shard_is_begun_before_the_last_is_finished_and_the_bytes_are_the_same(written, tmp_path):
    store = shutil.copytree(written / "store", tmp_path / "store")
    finished, called = {}, [threading.Event() for _ in range(3)]

    def look(child, shard: int) -> None:
        finished[shard] = {receipt.shard for receipt in Round(open_store(str(store)), "tiny", 0).receipts("score")}
        called[shard].set()
        free = child._on_free
        child._on_free = lambda: (free(), shard == 2 or called[shard + 1].wait(60))

    begun, ended = score(store, look)
    assert list(ended) == [0, 1, 2], "in the order in which they were begun"
    assert begun[1] < ended[0] and begun[2] < ended[1]
    assert 0 in finished[2], "two that wait to be finished would need memory for both"
    assert without_temp_files(files_of(store)) == files_of(written / "scored")
    for timing in Round(open_store(str(store)), "tiny", 0).timings():
        if timing["stage"] == "score":
            assert 0 < timing["finishing_s"] < timing["seconds"] < ended[2] - begun[0]


def test_a_shard_that_fails_while_it_is_being_finished_fails_alone_and_nothing_more_is_begun(written, tmp_path):
    store = damaged(written / "store", tmp_path / "store")
    begun = []
    with pytest.raises(IntegrityError, match="did not write these rollouts"):
        score(store, lambda child, shard: begun.append(shard))
    round = Round(open_store(str(store)), "tiny", 0)
    assert round.receipt("score", 0) and not round.receipt("score", 1)
    assert [shard for shard in begun if shard != 1] == [receipt.shard for receipt in round.receipts("score")]
    assert not list(store.rglob(".tmp-*")) and len(list(store.rglob("tokens/**/*.parquet"))) == len(begun) - 1


class Away(Work):
    """Whose store is away once the first shard is handed out."""

    def take(self, before: str | None):
        if self.handed_out:
            raise OSError("the store is away")
        return super().take(before)


def test_what_was_begun_is_finished_where_the_store_is_away_when_the_next_is_asked_for(written, tmp_path):
    round = Round(open_store(str(shutil.copytree(written / "store", tmp_path / "store"))), "tiny", 0)

    def play(child, stage: str, shard: int) -> None:
        child.call("shard", silent, stage=stage, shard=shard, **at(tmp_path / "store"))

    with Team(Workers()) as team, pytest.raises(OSError, match="the store is away"):
        compute(team.seats(["score"], config(type="transformers")), Away(round, {"score": [0, 1, 2]}), play)
    assert round.receipt("score", 0) and round.pending("score") == [1, 2]


def test_a_callback_that_fails_is_what_is_told_and_the_shard_before_is_finished(written, tmp_path):
    round = Round(open_store(str(shutil.copytree(written / "store", tmp_path / "store"))), "tiny", 0)

    def closed(what: str, done: int, total: int) -> None:
        raise BrokenPipeError("the terminal is gone")

    def play(child, stage: str, shard: int) -> None:
        child.call("shard", closed if shard else silent, stage=stage, shard=shard, **at(tmp_path / "store"))

    with Team(Workers()) as team, pytest.raises(BrokenPipeError, match="the terminal is gone"):
        compute(team.seats(["score"], config(type="transformers")), Work(round, {"score": [0, 1, 2]}), play)
    assert round.receipt("score", 0) and 2 in round.pending("score")


def test_a_team_replaces_a_seat_that_was_killed():
    with Team(Workers()) as team:
        (seat,) = team.seats(["score"], config(type="transformers"))
        seat.kill()
        (other,) = team.seats(["score"], config(type="transformers"))
        assert other is not seat and other.child("score").call("rest", silent) == {}


def damaged(store: Path, copy: Path) -> Path:
    """The same round, but the log-probs of shard 1's rollouts are not the student's."""
    shutil.copytree(store, copy, ignore=lambda folder, names: [name for name in names if "rollout-1" in name])
    here, there = Round(open_store(str(store)), "tiny", 0), Round(open_store(str(copy)), "tiny", 0)
    rollouts = here.read("rollout", 1)
    place = rollouts.schema.get_field_index("rollout_log_probs")
    log_probs = rollouts["rollout_log_probs"].combine_chunks()
    wrong = pa.ListArray.from_arrays(log_probs.offsets, pa.array(np.full(len(log_probs.values), -90, np.float32)),
                                     type=log_probs.type)
    there.finish("rollout", 1, "rollouts", rollouts.set_column(place, rollouts.schema.field(place), wrong),
                 inputs=here.receipt("rollout", 1).inputs)
    return copy


@pytest.mark.parametrize("pause_s", [0, 0.003, 0.02])
def test_a_child_killed_while_one_shard_is_finished_and_the_next_begun_loses_no_more_than_these(written, tmp_path,
                                                                                                pause_s):
    store = shutil.copytree(written / "store", tmp_path / "store")

    def kill(child, shard: int) -> None:
        if shard == 1:
            threading.Timer(pause_s, os.kill, [child._child._process.pid, signal.SIGKILL]).start()

    try:
        score(store, kill)
    except ChildFailed as error:
        assert re.match("score [012]: its process died", str(error))
        begun, _ = score(store)
        assert begun, "a killed one had no receipt"
    else:
        assert pause_s, "later the kill may come too late, on a loaded machine"
    assert without_temp_files(files_of(store)) == files_of(written / "scored")


def without_temp_files(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if ".tmp-" not in name}
