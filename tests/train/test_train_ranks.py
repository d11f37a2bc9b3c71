"""Two processes train on a round as one does: gloo, FSDP2, tiny models, real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.context import open_context
from pipeline.train import stage
from pipeline.train.batches import micro_batches
from pipeline.train.launch import check_gpus
from pipeline.train.parallel import OneProcess, balanced
from storage.errors import OpdError, UserError
from storage.objects import open_store
from storage.rounds import Round
from tests.s3_server import s3_server
from tests.train import rank_cases
from tests.train.scored import scored_store

HERE = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
CURVE = 1e-5

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Every case by one process, then by two; the checkpoints of some carried on by the other number."""
    folder = tmp_path_factory.mktemp("ranks")
    rank_cases.make(folder)
    data = rank_cases.tables(folder)
    for name in rank_cases.CASES:
        start = folder / ("untied" if name == "untied" else "student")
        one(folder, data, start, "one", name)
    subprocess.run([*TWO, "-m", "tests.train.rank_cases", str(folder)], check=True, env=ENVIRONMENT, cwd=HERE)
    for name in ("plain", "lora"):
        for start, out in (("one", "one-one"), ("two", "two-one")):
            one(folder, data, folder / start / name, out, name, 1, name == "lora")
    return folder


def one(folder: Path, data, start: Path, out: str, name: str, number: int = 0, adapter: bool = False) -> None:
    rows = rank_cases.train(folder, data, start, OneProcess(), folder / out / name, name, number, adapter)
    (folder / out / f"{name}.json").write_text(json.dumps(rows))


def curve(folder: Path, out: str, name: str) -> list[dict]:
    return json.loads((folder / out / f"{name}.json").read_text())


def largest(a: list[dict], b: list[dict], column: str) -> float:
    assert len(a) == len(b)
    pairs = [(one[column], two[column]) for one, two in zip(a, b) if one.get(column) is not None]
    return max(abs(one - two) for one, two in pairs)


@pytest.mark.parametrize("name", [name for name in rank_cases.CASES if name not in ("bfloat16", "fuse")])
def test_two_ranks_give_the_loss_curve_of_one_process(trained, name):
    one, two = curve(trained, "one", name), curve(trained, "two", name)
    assert len(one) > 20 and one[0]["loss"] > 1.2 * one[-2]["loss"] > 0
    for column in ("loss", "grad_norm", "drift", "ess", "teacher_kl"):
        assert largest(one, two, column) < CURVE, column
    for column in ("step", "tokens", "unmasked_tokens", "probe_tokens", "rollouts", "staleness"):
        assert [row.get(column) for row in one] == [row.get(column) for row in two]


def test_half_precision_of_two_ranks_is_that_of_one_within_its_rounding(trained):
    one, two = curve(trained, "one", "bfloat16"), curve(trained, "two", "bfloat16")
    assert largest(one, two, "loss") < 0.02 * one[0]["loss"]
    assert all(value.dtype == torch.float32 for value in load_file(
        trained / "two" / "bfloat16" / "model.safetensors").values())


def test_the_drift_fuse_blows_at_the_same_step(trained):
    one, two = curve(trained, "one", "fuse"), curve(trained, "two", "fuse")
    assert [row.get("stopped") for row in one] == [row.get("stopped") for row in two]
    assert "drift_fuse" in [row.get("stopped") for row in one]


@pytest.mark.parametrize("name", list(rank_cases.CASES))
def test_the_checkpoint_of_two_ranks_has_the_files_of_one_and_nearly_its_numbers(trained, name):
    one, two = ({path.name: path for path in (trained / out / name).iterdir()} for out in ("one", "two"))
    assert one.keys() == two.keys()
    for file in one:
        if not file.endswith(".safetensors"):
            assert one[file].read_bytes() == two[file].read_bytes()
            continue
        a, b = load_file(one[file]), load_file(two[file])
        assert a.keys() == b.keys() and len(one[file].read_bytes()) == len(two[file].read_bytes())
        if name != "bfloat16":  # whose first updates have the size of the learning rate whatever the gradient's size
            assert all(torch.allclose(a[key].double(), b[key].double(), rtol=1e-3, atol=1e-3) for key in a)


@pytest.mark.parametrize("name", ["plain", "lora"])
def test_a_round_of_one_process_goes_on_with_two_and_the_reverse(trained, name):
    straight = curve(trained, "one-one", name)
    assert straight[0]["step"] == len(curve(trained, "one", name))
    for other in ("one-two", "two-one"):
        assert largest(straight, curve(trained, other, name), "loss") < CURVE
        assert largest(straight, curve(trained, other, name), "grad_norm") < CURVE
        assert [row.get("step") for row in curve(trained, other, name)] == [row.get("step") for row in straight]


COMMAND = ["-m", "pipeline.train.ranks", "tiny", "--round", "0", "--store"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """One whose train stage torchrun has finished."""
    store = scored_store(tmp_path_factory.mktemp("store"), **{"train.ranks": 2})
    subprocess.run([*TWO, *COMMAND, str(store)], env=ENVIRONMENT, cwd=HERE, check=True)
    return store


@pytest.fixture(scope="module")
def long_store(tmp_path_factory) -> Path:
    """One whose round takes half a minute."""
    return scored_store(tmp_path_factory.mktemp("long"), **{
        "train.ranks": 2, "train.rollouts_per_step": 1, "train.epochs": 200, "train.age_cap": 10000,
        "train.drift_fuse": 9.0})


def files(store: Path) -> set[str]:
    return {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()}


def test_a_rank_that_dies_ends_the_stage_with_one_line_and_nothing_written(long_store):
    before, children, store = files(long_store), [], long_store

    def kill(what, done, total):
        if not children:
            children.extend(rank_processes(str(store)))
            os.kill(children[-1], signal.SIGKILL)

    with pytest.raises(OpdError, match=r"train: rank \d died \(exit code -9\).*nothing was written") as caught:
        stage.run(open_context(str(store), "tiny", 0, kill))
    assert len(children) == 2 and "\n" not in str(caught.value)
    assert files(store) == before and gone(children)


START_STAGE = ("import sys; from pipeline.context import open_context; from pipeline.train import stage\n"
               "stage.run(open_context(sys.argv[1], 'tiny', 0, lambda *_: print('on', flush=True)))")


def test_ranks_end_with_the_process_that_started_them(long_store):
    store, before = long_store, files(long_store)
    process = subprocess.Popen([sys.executable, "-c", START_STAGE, str(store)], env=ENVIRONMENT, stdout=subprocess.PIPE,
                               cwd=HERE)
    process.stdout.readline()
    children = rank_processes(str(store))
    process.kill()
    process.wait()
    assert len(children) == 2 and gone(children) and files(store) == before


def test_without_torchrun_the_command_says_so_in_one_line(tmp_path):
    alone = subprocess.run([sys.executable, *COMMAND, str(tmp_path)], env=ENVIRONMENT, cwd=HERE, capture_output=True,
                           text=True)
    assert alone.returncode == 2 and alone.stderr.startswith("opd: ") and alone.stderr.count("\n") == 1


def test_torchrun_finishes_the_stage(store):
    receipt = Round(open_store(str(store)), "tiny", 0).receipt("train", 0)
    assert receipt.facts["ranks"] == 2 and receipt.facts["steps"] == receipt.file.rows == 6
    assert Round(open_store(str(store)), "tiny", 0).stage_committed("train")


def test_two_machines_that_share_a_store_on_s3_write_what_two_ranks_of_one_write(store, tmp_path):
    url, scored = "s3://bucket/ranks", open_store(str(scored_store(tmp_path, **{"train.ranks": 2})))
    with s3_server():
        shared = open_store(url, create=True)
        for info in scored.list():
            shared.put_if_absent(info.key, scored.get(info.key))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            meeting = f"127.0.0.1:{probe.getsockname()[1]}"
        both = [*TWO[:3], "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "r", "--rdzv-backend", "c10d",
                "--rdzv-endpoint", meeting, "--local-addr", "127.0.0.1", *COMMAND, url]
        machines = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            reach = {**ENVIRONMENT, **os.environ, "PYTHONPATH": str(HERE), "TMPDIR": str(tmp_path / name)}
            machines.append(subprocess.Popen(both, env=reach, cwd=HERE))
        assert [each.wait(300) for each in machines] == [0, 0]
        receipt = Round(shared, "tiny", 0).receipt("train", 0)
        assert Round(shared, "tiny", 0).stage_committed("train")
    other = Round(open_store(str(store)), "tiny", 0).receipt("train", 0)
    assert receipt.facts == other.facts and receipt.file.sha256 == other.file.sha256
    assert {file.sha256 for file in receipt.checkpoint.files} == {file.sha256 for file in other.checkpoint.files}


def test_the_stage_itself_ends_with_the_same_bytes_as_torchrun(store, tmp_path):
    fresh = scored_store(tmp_path / "fresh", **{"train.ranks": 2})
    seen = []
    receipt = stage.run(open_context(str(fresh), "tiny", 0, lambda *progress: seen.append(progress)))
    other = Round(open_store(str(store)), "tiny", 0).receipt("train", 0)
    assert receipt.facts == other.facts and receipt.file.sha256 == other.file.sha256
    assert {file.sha256 for file in receipt.checkpoint.files} == {file.sha256 for file in other.checkpoint.files}
    assert receipt.inputs.keys() == other.inputs.keys() and seen[-1] == ("train", 6, 6)


def test_a_mistake_that_a_rank_finds_is_raised_as_it_is(tmp_path):
    store = scored_store(tmp_path, **{"train.ranks": 2, "train.lora.target_modules": ["no_such_module"]})
    before = files(store)
    with pytest.raises(UserError, match="train.lora.target_modules.*no_such_module.*does not fit Qwen2") as caught:
        stage.run(open_context(str(store), "tiny", 0))
    assert "\n" not in str(caught.value) and files(store) == before


def test_more_ranks_than_gpus_are_refused():
    check_gpus(8, 0)
    check_gpus(8, 8)
    with pytest.raises(UserError, match=r"train.ranks = 8 needs 8 GPUs and this machine has 2"):
        check_gpus(8, 2)


def test_rollouts_are_shared_by_tokens_and_none_is_lost():
    random = np.random.default_rng(0)
    length_R = random.integers(0, 2000, 64)
    for parts in (1, 2, 3, 8):
        shares = balanced(np.arange(64), length_R, parts)
        assert sorted(np.concatenate(shares)) == list(range(64))
        loads = [length_R[share].sum() for share in shares]
        assert max(loads) - min(loads) <= length_R.max()
        assert sum(len(micro_batches(share, length_R, 4096)) for share in shares) >= parts


def rank_processes(store: str) -> list[int]:
    """Processes whose command line holds this store and --out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if store in words and "--out" in words:
            found.append(int(path.parent.name))
    return sorted(found)


def gone(children: list[int], within_s: float = 20) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not any(alive(child) for child in children):
            return True
        time.sleep(0.1)
    return False


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
