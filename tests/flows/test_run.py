"""`opd run` on a tiny pair: rounds commit, kills leave a store that resumes to the same bytes, SQL answers."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.cli import main
from tests.tiny import make_tiny

ROOT = Path(__file__).parents[2]
STAGES = ("prompts", "rollout", "score", "mask", "train", "evaluate")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
ENVIRONMENT.pop("PREFECT_API_URL", None)


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def opd(*arguments, check=True) -> Done:
    """Run a command in this process, so that all of them share one fork server: 0.2 s instead of 5 s each."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    assert not check or code == 0, err.getvalue()
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder whose `store` holds an undisturbed run of two rounds."""
    folder = tmp_path_factory.mktemp("finished")
    opd("run", make_tiny(folder))
    return folder


def hashed_files(store: Path) -> dict[str, bytes]:
    """Every file of a store but its timings, which are never hashed."""
    return {str(file.relative_to(store)): file.read_bytes() for file in sorted(store.rglob("*"))
            if file.is_file() and "timings" not in file.parts}


def without_temp_files(files: dict[str, bytes]) -> dict[str, bytes]:
    """What a killed writer leaves besides is for `opd gc`: files named .tmp-<uuid>, and nothing else."""
    return {name: content for name, content in files.items() if ".tmp-" not in name}


def test_a_run_commits_its_rounds_chained_from_student_to_student(finished):
    rounds = [json.loads((finished / f"store/run=tiny/round={n}/manifest.json").read_text()) for n in (0, 1)]
    assert rounds[0]["parent"] is None and rounds[1]["parent"] is not None
    assert rounds[1]["checkpoint_in"] == rounds[0]["checkpoint_out"]
    assert rounds[0]["checkpoint_in"]["fingerprint"] != rounds[0]["checkpoint_out"]["fingerprint"]


def test_the_installed_command_is_the_same_program():
    run = subprocess.run([sys.executable, "-m", "flows.cli", "--help"], env=ENVIRONMENT, text=True, capture_output=True)
    assert run.returncode == 0 and all(verb in run.stdout for verb in ("init", "doctor", "run", *STAGES, "lineage"))


def test_the_same_command_again_finds_everything_done(finished):
    before = hashed_files(finished / "store")
    assert "all 2 rounds were committed already" in opd("run", finished / "config.toml").stdout
    assert hashed_files(finished / "store") == before


def test_verify_finds_nothing_and_then_the_flipped_bit(finished, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(finished / "store", store)
    assert "as it was" in opd("verify", "--store", store).stdout
    shard = next((store / "run=tiny/round=1/tokens").rglob("*.parquet"))
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    found = opd("verify", "--store", store, check=False)
    assert found.returncode == 1 and shard.name in found.stdout


def test_lineage_lists_the_rounds_behind_a_checkpoint(finished):
    checkpoint = next((finished / "store/run=tiny/checkpoint=2").iterdir())
    found = json.loads(opd("lineage", checkpoint, "--store", finished / "store", "--json").stdout)
    assert [each["round"] for each in found["rounds"]] == [1, 0]


@pytest.mark.parametrize("number", [0, 1])
def test_200_stored_tokens_agree_with_a_dense_computation_and_not_with_the_student_before(finished, number):
    from tests.flows.dense_audit import audit

    found = audit(finished / "store", "tiny", number)
    assert found.scalars < 1e-4 and found.lists <= 0.5 / 32 + 1e-4
    assert found.wrong_ids == found.wrong_ranks == 0
    assert number == 0 or found.before > 0.01


def receipts(store: Path, number: int, stage: str) -> list[Path]:
    return list((store / f"run=tiny/round={number}/receipts").glob(f"{stage}-*.json"))


def kill_within(stage: str, config: Path, store: Path, number: int) -> bool:
    """SIGKILL `opd run` after the stage's first receipt and before its last; False if it was too quick for us."""
    shards = {"train": 1, "evaluate": 2}.get(stage, 4)
    begun = (lambda: (store / f"run=tiny/round={number}/mask.json").exists()) if shards == 1 else (
        lambda: receipts(store, number, stage))
    process = subprocess.Popen([sys.executable, "-m", "flows.cli", "run", str(config)], env=ENVIRONMENT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not begun() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.3)  # a child that is still there would write on; it must not
    return bool(begun()) and len(receipts(store, number, stage)) < shards


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_within_a_stage_resumes_to_the_same_bytes(finished, tmp_path, stage):
    for attempt in range(5):
        store, config = tmp_path / f"store-{attempt}", tmp_path / f"{attempt}.toml"
        config.write_text((finished / "config.toml").read_text().replace(str(finished / "store"), str(store)))
        if kill_within(stage, config, store, number=1):
            break
    else:
        pytest.fail(f"never killed within {stage}")
    opd("run", config)
    assert without_temp_files(hashed_files(store)) == hashed_files(finished / "store")


def test_ctrl_c_leaves_a_store_that_resumes(finished, tmp_path):
    store, config = tmp_path / "store", tmp_path / "c.toml"
    config.write_text((finished / "config.toml").read_text().replace(str(finished / "store"), str(store)))
    process = subprocess.Popen([sys.executable, "-m", "flows.cli", "run", str(config)], env=ENVIRONMENT,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not receipts(store, 0, "rollout") and process.poll() is None:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    assert process.wait(30) == 130
    error = process.stderr.read()
    assert "the same command goes on" in error and "Traceback" not in error
    opd("run", config)
    assert without_temp_files(hashed_files(store)) == hashed_files(finished / "store")


def test_the_stages_by_command_write_what_opd_run_writes(finished, tmp_path):
    store, config = tmp_path / "store", tmp_path / "c.toml"
    config.write_text((finished / "config.toml").read_text().replace(str(finished / "store"), str(store)))
    opd("start", config)
    for number in (0, 1):
        for stage in STAGES:
            opd(stage, "--run", "tiny", "--round", number, "--store", store)
    assert hashed_files(store) == hashed_files(finished / "store")


def ask(finished: Path, sql: str) -> list[dict]:
    return json.loads(opd("sql", sql, "--store", finished / "store", "--json").stdout)


def test_sql_answers_gap_by_position_worst_tokens_masks_and_overlap(finished):
    gaps = ask(finished, "gap_by_position")
    assert {row["round"] for row in gaps} == {0, 1}
    assert len(ask(finished, "worst_tokens")) == 10
    masked = ask(finished, "masked_by_reason")
    assert {(row["round"], row["masked"]) for row in masked if row["reason"] == "first token"} == {(0, 16), (1, 16)}
    overlap = {row["round"]: row["overlap_ratio"] for row in ask(finished, "overlap_by_round")}
    assert set(overlap) == {0, 1} and all(0 <= value <= 1 for value in overlap.values())


def test_a_dry_run_prints_config_and_plan_and_writes_nothing(tmp_path):
    config = make_tiny(tmp_path)
    shown = opd("run", config, "--dry-run").stdout
    assert "round 0 of 0 to 1: 8 prompts x 2 samples in 4 shards" in shown and "per_round = 8" in shown
    assert not (tmp_path / "store").exists()


def test_a_dry_run_of_a_run_that_stands_shows_its_next_round_and_refuses_another_config(finished):
    config = finished / "config.toml"
    assert "nothing to play" in opd("run", config, "--dry-run").stdout
    assert "round 2 of 0 to 4" in opd("run", config, "--dry-run", "--set", "rounds=5").stdout
    done = opd("run", config, "--dry-run", "--set", "seed=9", check=False)
    assert done.returncode == 2 and "exists with another seed" in done.stderr


def refused(tmp_path: Path, *settings, said: str) -> None:
    """`opd run` with these settings is one line on stderr, exit code 2, and no store."""
    config = tmp_path / "config.toml" if (tmp_path / "config.toml").exists() else make_tiny(tmp_path)
    arguments = [part for setting in settings for part in ("--set", setting)]
    done = opd("run", config, *arguments, check=False)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and said in lines[-1], done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "store").exists()


def test_bad_input_is_one_line_exit_code_2_and_nothing_written(tmp_path):
    refused(tmp_path, "prompts.per_roundd=3", said="did you mean prompts.per_round?")
    refused(tmp_path, "prompts.per_round=abc", said="prompts.per_round = 'abc'")
    refused(tmp_path, "student.path='missing'", said="missing")
    refused(tmp_path, "prompts.source.path='missing.jsonl'", said="missing.jsonl")
    refused(tmp_path, "prompts.max_prompt_tokens=3", said="max_prompt_tokens")
    refused(tmp_path, "score.teacher_top_k=100000", said="score.teacher_top_k = 100000")
    refused(tmp_path, "run='../x'", said="is not clean")
    refused(tmp_path, "run='[/x]'", said="is not clean")


def test_a_teacher_with_other_ids_is_refused(tmp_path):
    from tests.tiny import byte_tokenizer, save_model

    make_tiny(tmp_path)
    shutil.rmtree(tmp_path / "teacher")
    save_model(tmp_path / "teacher", byte_tokenizer(["the cat sat on the mat " * 9]), seed=2)
    other = byte_tokenizer(["0123 4567 89 " * 9])
    shutil.rmtree(tmp_path / "student")
    save_model(tmp_path / "student", other, seed=1)
    refused(tmp_path, said="tokenizer")


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    config = make_tiny(tmp_path)
    (tmp_path / "store").mkdir()
    (tmp_path / "store/precious.txt").write_text("mine")
    done = opd("run", config, check=False)
    assert done.returncode == 2 and "store" in done.stderr
    assert os.listdir(tmp_path / "store") == ["precious.txt"]
    for verb in (["verify"], ["sql", "SELECT 1"], ["score", "--run", "a", "--round", "0"]):
        assert opd(*verb, "--store", tmp_path / "store", check=False).returncode == 2


LOOP = """
until {python} -m flows.cli run {config} --leave-training --json; do
  test $? = 3 && {python} -m torch.distributed.run --standalone --nproc-per-node 2 -m pipeline.train.ranks tiny \\
    --store {store} || break
done
"""


@pytest.mark.timeout(180)
def test_training_that_is_left_to_torchrun_is_waited_for(tmp_path):
    """The loop of README's several machines, on one, for one round."""
    loop = LOOP.format(python=sys.executable, config=make_tiny(tmp_path, rounds=1), store=tmp_path / "store")
    done = subprocess.run(["bash", "-c", loop], cwd=tmp_path, env=ENVIRONMENT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [each.get("training_due") for each in said] == [0, None]
    assert [[played["round"] for played in each["played"]] for each in said] == [[], [0]]
    assert opd("verify", "--store", tmp_path / "store").stdout.strip() == "everything committed is as it was"


def test_training_that_is_left_is_told_with_the_command_that_does_it(tmp_path):
    config = make_tiny(tmp_path)
    left = opd("run", config, "--leave-training", check=False)
    assert left.returncode == 3 and "round 0 is to be trained on: torchrun ... -m pipeline.train.ranks" in left.stdout
    again = opd("run", config, "--leave-training", check=False)
    assert (again.returncode, again.stdout) == (3, left.stdout) and "prompts" not in again.stderr
    assert opd("run", config).stdout.count("committed:") == 2, "who does not leave it trains"
