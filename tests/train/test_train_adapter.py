"""LoRA: the merged student is peft's, the adapter goes on bit for bit, and nothing else moves."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import objectives
from pipeline.config.model import TeacherTopKLsm
from pipeline.config.train import Lora
from pipeline.context import open_context
from pipeline.models import load_model
from pipeline.train import stage
from pipeline.train.adapter import Base, add_adapter, find_base, load_adapter
from pipeline.train.opening import open_student
from pipeline.train.parallel import OneProcess
from pipeline.train.reader import join
from pipeline.train.session import Trained
from pipeline.train.trainer import Trainer
from storage import layout, schemas
from storage.errors import IntegrityError, UserError
from storage.rounds import CheckpointFiles
from tests.tiny import byte_tokenizer, save_model
from tests.train import rank_cases
from tests.train.scored import fill_round, scored_store
from tests.train.tables import tiny_model

pytest.importorskip("peft")
LORA = {"train.lora.rank": 4, "train.lora.alpha": 8}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, tables): round 0 of an adapter, its checkpoint in folder/first."""
    folder = tmp_path_factory.mktemp("adapter")
    rank_cases.make(folder)
    data = rank_cases.tables(folder)
    rank_cases.train(folder, data, folder / "student", OneProcess(), folder / "first", "lora")
    return folder, data


def test_the_merged_student_is_what_peft_merges(trained):
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    folder, _ = trained
    theirs = get_peft_model(load_model(folder / "student"), LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    loaded = set_peft_model_state_dict(theirs, load_file(folder / "first" / "optimizer-adapter.safetensors"))
    assert not loaded.unexpected_keys
    merged = theirs.merge_and_unload().state_dict()
    ours, start = (load_model(folder / name).state_dict() for name in ("first", "student"))
    assert ours.keys() == merged.keys() == start.keys()
    for name, value in merged.items():
        assert torch.allclose(ours[name], value, rtol=0, atol=1e-7), name
        assert torch.equal(ours[name], start[name]) != name.endswith("_proj.weight"), name


def test_an_adapter_saved_and_loaded_goes_on_bit_for_bit(trained):
    folder, data = trained
    straight = train_on(folder, data)
    resumed = rank_cases.train(folder, data, folder / "first", OneProcess(), folder / "second", "lora", 1, True)
    assert resumed == straight
    again = (folder / "straight" / "optimizer-adapter.safetensors").read_bytes()
    for name in ("model.safetensors", "optimizer.safetensors", "optimizer-adapter.safetensors"):
        assert (folder / "second" / name).read_bytes() == (folder / "straight" / name).read_bytes()
    assert again != (folder / "first" / "optimizer-adapter.safetensors").read_bytes()


def train_on(folder: Path, data) -> list[dict]:
    """Rounds 0 and 1 in a process that never puts its student down; the rows of round 1."""
    context = rank_cases.context_of(folder, 0, **LORA)
    base = Base(CheckpointFiles("base", "0", []), folder / "student", None)
    opened = open_student(context, base, folder / "student", OneProcess())
    rows, run_steps = [], 0
    for number in (0, 1):
        trainer = Trainer(opened.student, opened.optimizer, objectives.build(TeacherTopKLsm()), context.config.train,
                          join(*data, "here"), grid=32, run_steps=run_steps)
        rows = [*trainer.train_round(3, number, lambda *_: None), trainer.closing()]
        run_steps = trainer.run_steps
    (folder / "straight").mkdir()
    Trained(context, trainer, OneProcess(), None, folder / "student", base, None, {}).write_checkpoint(
        folder / "straight")
    return rows


def test_only_the_adapter_is_trained(trained):
    folder, _ = trained
    state = load_file(folder / "first" / "optimizer.safetensors")
    assert len(state) == 1 + 3 * 2 * 7 * 2
    assert all(".lora_" in name for name in state if name != "run_steps")
    model = load_model(folder / "student")
    add_adapter(model, Lora(rank=2), seed=0)
    assert not model.get_output_embeddings().weight.requires_grad
    assert {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_an_adapter_depends_on_its_seed_alone():
    found = []
    for seed, noise in ((1, 3), (1, 4), (2, 3)):
        model = tiny_model(1)
        torch.manual_seed(noise)
        add_adapter(model, Lora(rank=2), seed)
        found.append(dict(model.named_parameters())["model.layers.0.mlp.up_proj.lora_A.default.weight"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_round_in_the_store_goes_on_from_base_and_adapter_of_the_one_before(tmp_path):
    store = scored_store(tmp_path, **LORA)
    context = open_context(str(store), "tiny", 0)
    receipt = stage.run(context)
    names = {file.key.rpartition("/")[2] for file in receipt.checkpoint.files}
    assert {"model.safetensors", "optimizer-adapter.safetensors", "optimizer.safetensors", "lora.json"} <= names
    for shard in context.round.shard_indices("prompts"):
        context.round.finish("prompts", shard, "prompts", schemas.PROMPTS.empty_table(), inputs={})
    for each in layout.STAGES:
        context.round.commit_stage(each)
    context.round.commit()
    second = open_context(str(store), "tiny", 1)
    fill_round(second.round, receipt.checkpoint.fingerprint, store / receipt.checkpoint.prefix, tmp_path / "teacher")
    later = stage.run(second)
    assert later.facts["run_steps"] == 2 * receipt.facts["run_steps"]
    record = json.loads((store / later.checkpoint.prefix / "lora.json").read_text())
    assert record["base"]["prefix"].startswith("run=tiny/checkpoint=0/")
    assert any(key.startswith("run=tiny/checkpoint=0/") for key in later.inputs)
    other = second.config.model_copy(update={"train": second.config.train.model_copy(update={"lora": Lora(rank=2)})})
    changed = dataclasses.replace(second, config=other)
    start = receipt.checkpoint
    base = find_base(changed, start, store / start.prefix)
    assert base.files == start and base.adapter is None


def test_an_adapter_of_another_model_is_refused(trained, tmp_path):
    folder, _ = trained
    model = load_model(save_model(tmp_path / "wide", byte_tokenizer(), seed=1, hidden=64))
    add_adapter(model, Lora(rank=4, alpha=8), 0)
    with pytest.raises(IntegrityError, match="does not fit the model at model.layers.0"):
        load_adapter(model, folder / "first")
    model = load_model(folder / "student")
    add_adapter(model, Lora(rank=4, alpha=8), 0)
    tensors = load_file(folder / "first" / "optimizer-adapter.safetensors")
    save_file({**tensors, "base_model.model.extra": torch.zeros(1)}, tmp_path / "optimizer-adapter.safetensors")
    with pytest.raises(IntegrityError, match="which the model does not have"):
        load_adapter(model, tmp_path)


def test_without_peft_one_line_says_what_to_install(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"train.lora needs peft.*pip install 'opd-rounds\[lora\]'") as caught:
        add_adapter(load_model(trained[0] / "student"), Lora(), 0)
    assert "\n" not in str(caught.value)


def test_a_merged_checkpoint_holds_nothing_that_a_loader_takes_for_an_adapter(trained):
    names = {path.name for path in (trained[0] / "first").iterdir()}
    assert not names & {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_the_embedding_and_the_head_cannot_be_adapted(target):
    with pytest.raises(UserError, match=f"names .*{target}, which cannot be adapted here") as caught:
        add_adapter(tiny_model(seed=1), Lora(rank=2, alpha=2, target_modules=["q_proj", target]), seed=0)
    assert "\n" not in str(caught.value)
