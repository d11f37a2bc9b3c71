"""The train stage over a real store: same inputs, same bytes; damaged or foreign inputs, nothing written."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.context import open_context
from pipeline.models import load_model
from pipeline.train import stage
from storage import layout
from storage.errors import IntegrityError, UserError
from storage.objects import open_store
from storage.rounds import Receipt, Round, create_run, put_checkpoint
from tests.tiny import byte_tokenizer, save_model
from tests.train.scored import SHARDS, scored_store

TRAIN_HERE = "import sys; from pipeline.context import open_context; from pipeline.stages import prepare_process\n" \
             "from pipeline.train.stage import run\ncontext = open_context(sys.argv[1], 'tiny', 0)\n" \
             "prepare_process(context.config.threads); run(context)"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """A store whose round 0 is ready to be trained on."""
    return scored_store(tmp_path_factory.mktemp("scored"))


@pytest.fixture
def store(scored, tmp_path) -> Path:
    return Path(shutil.copytree(scored, tmp_path / "store"))


def train(store: Path) -> Receipt:
    return stage.run(open_context(str(store), "tiny", 0))


def everything(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_the_stage_writes_steps_a_receipt_and_the_next_checkpoint_and_nothing_else(store):
    before = everything(store)
    receipt = train(store)
    after = everything(store)
    written = after.keys() - before.keys()
    assert {key: after[key] for key in before} == before
    expected = {receipt.file.key, layout.receipt("tiny", 0, "train", 0),
                *(file.key for file in receipt.checkpoint.files)}
    assert written == expected
    assert receipt.checkpoint.prefix.startswith("run=tiny/checkpoint=1/")
    assert receipt.facts["steps"] == receipt.facts["run_steps"] == 6 and receipt.facts["stopped"] == "done"
    assert receipt.facts["closing"].keys() == {"positions", "drift", "ess", "student_mass", "opd_reverse_kl",
                                               "teacher_kl", "student_entropy", "topk_left"}
    assert receipt.file.rows == 6
    assert {key for key in receipt.inputs if key.endswith(".parquet")} == {
        key for key in before if key.endswith(".parquet")}
    assert {key for key in receipt.inputs if "/checkpoint=0/" in key} == {
        key for key in before if "/checkpoint=0/" in key}


def test_the_next_checkpoint_is_another_student_with_the_same_tokenizer(store):
    receipt = train(store)
    old, new = (next((store / "run=tiny" / f"checkpoint={n}").iterdir()) for n in (0, 1))
    assert (old / "tokenizer.json").read_bytes() == (new / "tokenizer.json").read_bytes()
    moved = [not torch.equal(a, b) for a, b in zip(load_model(old).parameters(), load_model(new).parameters())]
    assert all(moved) and receipt.checkpoint.fingerprint != open_context(str(store), "tiny", 0).document[
        "student_checkpoint"]["fingerprint"]


def test_two_runs_write_the_same_bytes_in_one_process_and_in_another(store, tmp_path):
    copies = [Path(shutil.copytree(store, tmp_path / name)) for name in ("same", "other")]
    train(store)
    train(copies[0])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", TRAIN_HERE, str(copies[1])], check=True, env=environment)
    first, same, other = (everything(copy) for copy in (store, *copies))
    assert first == same == other


def trained_with(store: Path, folder: Path, section: str, **changes) -> Receipt:
    """The stage on a copy of `store`, with other keys in one section of the config."""
    context = open_context(str(shutil.copytree(store, folder)), "tiny", 0)
    changed = getattr(context.config, section).model_copy(update=changes)
    return stage.run(dataclasses.replace(context, config=context.config.model_copy(update={section: changed})))


def test_gradient_checkpointing_ends_with_the_same_bytes(store, tmp_path):
    receipt = trained_with(store, tmp_path / "checkpointed", "train", gradient_checkpointing=True)
    assert receipt == train(store)


def test_a_student_with_flash_attention_is_trained_with_sdpa(store, tmp_path):
    receipt = trained_with(store, tmp_path / "flash", "student", attention="flash_attention_2")
    assert receipt == train(store)


def test_the_sequence_mean_of_the_config_ends_with_another_student(store, tmp_path):
    receipt = trained_with(store, tmp_path / "sequence-mean", "train", reduction="sequence_mean")
    assert receipt.checkpoint.fingerprint != train(store).checkpoint.fingerprint


def test_a_damaged_shard_or_weight_is_refused_and_nothing_is_written(store):
    victims = [next(store.rglob("tokens/**/*.parquet")), next(store.rglob("checkpoint=0/*/model.safetensors"))]
    for victim in victims:
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 4
        victim.chmod(0o644)
        victim.write_bytes(data)
        before = everything(store)
        with pytest.raises(IntegrityError, match=victim.name):
            train(store)
        assert everything(store) == before
        data[len(data) // 2] ^= 4
        victim.write_bytes(data)
    train(store)


def test_rollouts_of_another_checkpoint_are_refused(scored, tmp_path):
    store = open_store(str(shutil.copytree(scored, tmp_path / "store")))
    save_model(tmp_path / "other", byte_tokenizer(), seed=8)
    document = dict(open_context(store.url, "tiny", 0).document)
    other = put_checkpoint(store, "tiny", 0, tmp_path / "other")
    (tmp_path / "store" / layout.run_json("tiny")).unlink()
    create_run(store, "tiny", {**document, "student_checkpoint": other.as_dict()})
    with pytest.raises(IntegrityError, match="written by checkpoint"):
        train(tmp_path / "store")


def test_a_loss_that_is_not_finite_leaves_nothing_behind(scored, tmp_path):
    source, store = open_store(str(scored)), open_store(str(tmp_path / "store"), create=True)
    for each in source.list("run=tiny/"):
        if "round=0/" not in each.key:
            store.put_if_absent(each.key, source.get(each.key))
    old, new = Round(source, "tiny", 0), Round(store, "tiny", 0)
    new.put_plan(old.plan())
    for i in range(SHARDS):
        weight = pa.array(np.full(old.receipt("mask", i).file.rows, 3e38), pa.float32())
        new.finish("rollout", i, "rollouts", old.read("rollout", i), inputs={})
        new.finish("score", i, "tokens", old.read("score", i), inputs={}, scores="0" * 8)
        mask = old.read("mask", i)
        new.finish("mask", i, "mask", mask.set_column(2, mask.schema.field("weight"), weight), inputs={})
    before = everything(tmp_path / "store")
    with pytest.raises(UserError, match="training stopped at step 1"):
        train(tmp_path / "store")
    assert everything(tmp_path / "store") == before
