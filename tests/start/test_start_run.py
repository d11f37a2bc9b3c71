"""Starting and reopening a run: what is refused, and what run.json fixes for every host."""

import os
import shutil

import pytest
import torch

from pipeline import start, versions
from pipeline.config import load_config
from pipeline.context import open_context
from storage import documents, layout
from storage.errors import UserError
from storage.objects import open_store
from tests.tiny import make_tiny


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The folder of a started run whose config leaves the threads to the host."""
    folder = tmp_path_factory.mktemp("started")
    config = make_tiny(folder)
    config.write_text(config.read_text().replace("threads = 1\n", ""))
    start.start_run(load_config(config))
    return folder


@pytest.fixture
def config(started, tmp_path):
    """The config of a run of its own in a copy of the store."""
    shutil.copytree(started / "store", tmp_path / "store")
    return load_config(started / "config.toml", [f"store={tmp_path / 'store'}"])


def begun_with(config, **changes) -> None:
    """Rewrite run.json as if other versions had been there when the run began."""
    store = open_store(config.store)
    key = layout.run_json(config.run)
    document = documents.unseal(store.get(key))
    store.delete(key)
    store.put_if_absent(key, documents.seal({**document, "versions": {**document["versions"], **changes}}))


def test_a_run_that_began_before_a_key_was_there_goes_on_with_its_default(config):
    store, key = open_store(config.store), layout.run_json(config.run)
    document = documents.unseal(store.get(key))
    del document["config"]["train"]["ranks"], document["config"]["score"]["engine"]
    store.delete(key)
    store.put_if_absent(key, documents.seal(document))
    assert start.start_run(config)["config"] == document["config"]
    changed = config.model_copy(update={"train": config.train.model_copy(update={"ranks": 2})})
    assert "another train.ranks" in refusal(start.start_run, changed)


def refusal(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- versions ---


@pytest.mark.parametrize("name", versions.COMPARED)
def test_a_run_that_began_with_another_version_is_refused(config, name):
    begun_with(config, **{name: "0.1"})
    here = versions.versions()[name]
    message = refusal(open_context, config.store, config.run, 0)
    assert message.startswith(f"run tiny began with {name} 0.1, here is {here}: rounds would not be comparable")
    assert message.endswith(f"install {name}==0.1, or start a new run")


def test_other_versions_of_what_computes_nothing_and_builds_for_a_device_are_let_in(config):
    torch_here = versions.public(versions.versions()["torch"])
    begun_with(config, prefect="0.1", duckdb="0.1", vllm="0.1", python="3.1", torch=f"{torch_here}+cu999")
    assert open_context(config.store, config.run, 0).config.run == "tiny"


# --- threads ---


def test_null_threads_are_recorded_as_what_they_were_and_kept_on_another_host(config):
    assert config.threads is None
    recorded = open_context(config.store, config.run, 0).config.threads
    assert recorded == torch.get_num_threads()
    torch.set_num_threads(recorded + 1)  # what another host would have
    try:
        assert start.start_run(config)["config"]["threads"] == recorded
    finally:
        torch.set_num_threads(recorded)
    other = config.model_copy(update={"threads": recorded + 1})
    assert refusal(start.start_run, other).startswith("run tiny exists with another threads")


# --- masks and models ---


def test_an_edited_sql_mask_is_refused_and_a_restored_one_is_not(config, started):
    file = started / "first_token.sql"
    text = file.read_text()
    try:
        file.write_text(text.replace("position = 0", "position = 1"))
        assert refusal(start.start_run, config) == (
            f"mask {file} changed since the run began: use another run id, or restore it")
    finally:
        file.write_text(text)
    start.start_run(config)


def test_a_student_with_code_of_its_own_is_refused_before_anything_is_written(tmp_path):
    config = load_config(make_tiny(tmp_path), ["student.trust_remote_code=true"])
    assert refusal(start.start_run, config).startswith("student.trust_remote_code = true cannot work: checkpoints keep")
    assert not os.path.exists(config.store)
    assert start.describe_run(load_config(tmp_path / "config.toml", ["teacher.trust_remote_code=true"]))


def test_a_student_that_is_an_adapter_is_refused_before_anything_is_written(tmp_path):
    config = load_config(make_tiny(tmp_path))
    (tmp_path / "student" / "adapter_config.json").write_text("{}")
    assert "holds an adapter (adapter_config.json)" in refusal(start.start_run, config)
    assert not os.path.exists(config.store)


# --- run.json, written out: readers of a store rely on it ---


def test_run_json_has_these_keys(started):
    store = open_store(started / "store")
    document = documents.load(store.get(layout.run_json("tiny")))
    assert document.keys() == {"benchmarks", "branch", "checksum", "config", "format", "kind", "objective_source",
                               "prompt_pool", "run", "sql_masks", "student", "student_checkpoint", "teacher",
                               "versions", "vocabulary"}
    assert document["student"].keys() == document["teacher"].keys() == {
        "attention", "config_hash", "dtype", "eos_token", "eos_token_id", "fingerprint", "generation_eos_token_id",
        "model_type", "pad_token_id", "path", "revision", "template_hash", "tokenizer_hash", "tokens",
        "trust_remote_code", "vocab_size"}
    assert document["vocabulary"].keys() == {"shared", "warnings"}
    assert document["student_checkpoint"].keys() == {"files", "fingerprint", "prefix"}
    assert document["config"].keys() == {"mask", "objective", "prompts", "rollout", "rounds", "run", "score", "seed",
                                         "student", "teacher", "threads", "train", "evaluation", "continuation"}
