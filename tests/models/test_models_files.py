import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from pipeline.config.model import Model
from pipeline.models import fingerprint, load_model, load_tokenizer, model_facts, pinned, resolve
from pipeline.models.files import config_hash
from pipeline.train.sharded import empty_model
from storage.checkpoints import folder_hashes, weights_fingerprint
from storage.errors import UserError
from storage.weights import weight_files
from tests.score.families import tiny
from tests.tiny import byte_tokenizer, save_model


def made(folder, **options):
    return save_model(folder / "model", byte_tokenizer(), seed=1, **options)


def refused(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_local_folder_is_taken_as_it_is(tmp_path):
    folder = made(tmp_path)
    assert resolve(Model(path=str(folder))) == folder
    assert resolve(folder) == folder


def test_a_folder_that_does_not_exist_is_refused_by_name(tmp_path):
    assert "does not exist" in refused(resolve, Model(path=str(tmp_path / "absent")))
    assert "is a file" in refused(resolve, Model(path=__file__))


@pytest.mark.parametrize("name", ["nobody/no-such-model-here", "no-such-model-here"])
def test_a_hub_name_that_is_not_cached_is_refused_when_offline(name):
    assert f"model {name} (revision main) is neither a folder here nor to be had" in refused(resolve, Model(path=name))


def test_a_hub_name_is_found_in_the_cache_and_its_commit_recorded(tmp_path, monkeypatch):
    import huggingface_hub.constants

    commit = "a" * 40
    repository = tmp_path / "models--somebody--tiny"
    save_model(repository / "snapshots" / commit, byte_tokenizer(), seed=1)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = Model(path="somebody/tiny")
    assert resolve(model).name == commit
    facts = model_facts(model)
    assert facts["revision"] == commit
    assert pinned(model, facts).revision == commit and resolve(pinned(model, facts)) == resolve(model)


def test_pickled_weights_are_named_and_never_read(tmp_path):
    folder = made(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    message = refused(load_model, folder)
    assert "pickled weights only (pytorch_model.bin)" in message


def test_a_folder_without_weights_or_config_is_refused(tmp_path):
    folder = made(tmp_path)
    (folder / "model.safetensors").rename(tmp_path / "kept")
    assert "has no model.safetensors" in refused(load_model, folder)
    (tmp_path / "kept").rename(folder / "model.safetensors")
    (folder / "config.json").unlink()
    assert "has no config.json" in refused(load_model, folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "weights.bin", "a/b.safetensors"])
def test_an_index_that_points_out_of_the_folder_is_refused(tmp_path, name):
    folder = made(tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "not a safetensors file of that folder" in refused(load_model, folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_not_json_is_refused(tmp_path, content):
    folder = made(tmp_path)
    (folder / "config.json").write_bytes(content)
    assert "config.json is not" in refused(load_model, folder)


def test_truncated_weights_are_refused(tmp_path):
    folder = made(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "not whole safetensors files" in refused(load_model, folder)


def test_weights_that_lack_a_tensor_are_refused_and_not_made_up(tmp_path):
    folder = made(tmp_path)
    tensors = load_model(folder).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({key: value for key, value in tensors.items() if key not in (name, "lm_head.weight")},
              folder / "model.safetensors", metadata={"format": "pt"})
    assert f"missing {name}" in refused(load_model, folder)


def test_weights_of_another_size_are_refused(tmp_path):
    folder = made(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    refused(load_model, folder)


def test_code_that_came_with_the_weights_is_not_run(tmp_path):
    folder = made(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\n")
    (folder / "config.json").write_text(json.dumps(config | {
        "model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}))
    assert "trust_remote_code = true" in refused(load_model, folder)
    assert not (tmp_path / "owned").exists()


def test_tokenizer_code_that_came_along_is_not_run(tmp_path):
    folder = made(tmp_path)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.T", None]}}))
    assert "the tokenizer in" in refused(load_tokenizer, folder)


def test_an_unknown_architecture_is_refused(tmp_path):
    folder = made(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert\x1b[31m"}))
    assert "has no causal language model of type 'bert\\x1b[31m'" in refused(load_model, folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    folder = made(tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    assert "has no tokenizer that can be read" in refused(load_tokenizer, folder)
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer (tokenizer.json" in refused(load_tokenizer, folder)


def test_the_fingerprint_is_that_of_storage_and_of_the_weights_alone(tmp_path):
    folder = made(tmp_path)
    before = fingerprint(folder)
    assert before == weights_fingerprint(folder_hashes(folder))
    (folder / "config.json").write_text("{}")
    save_file({"m": torch.zeros(3)}, folder / "optimizer.safetensors")
    assert fingerprint(folder) == before
    save_file({"m": torch.zeros(3)}, folder / "model.safetensors")
    assert fingerprint(folder) != before


def test_safetensors_that_are_not_loaded_are_neither_fingerprinted_nor_kept(tmp_path):
    folder = made(tmp_path)
    before = folder_hashes(folder), fingerprint(folder)
    for name in ("consolidated.safetensors", "model.fp16.safetensors", "model-00001-of-00002.safetensors"):
        save_file({"m": torch.zeros(3)}, folder / name)
    assert (folder_hashes(folder), fingerprint(folder)) == before
    load_model(folder).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    save_file({"m": torch.zeros(3)}, tmp_path / "sharded" / "consolidated.safetensors")
    hashes = folder_hashes(tmp_path / "sharded")
    assert "consolidated.safetensors" not in hashes
    assert fingerprint(tmp_path / "sharded") == weights_fingerprint(hashes)


def test_two_sets_of_weights_in_one_folder_are_refused(tmp_path):
    folder = made(tmp_path)
    load_model(folder).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    (folder / "model.safetensors").rename(tmp_path / "sharded" / "model.safetensors")
    assert "which of them are the weights is not clear" in refused(fingerprint, tmp_path / "sharded")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("call", [folder_hashes, fingerprint, load_model])
def test_an_adapter_is_refused(tmp_path, name, call):
    folder = made(tmp_path)
    (folder / name).write_text("{}")
    assert f"holds an adapter ({name}), which is no model of its own: merge it" in refused(call, folder)


def test_the_hash_of_a_config_is_of_what_it_says(tmp_path):
    folder = made(tmp_path)
    file, before = folder / "config.json", config_hash(folder)
    config = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(config.items()))))
    assert config_hash(folder) == before == model_facts(Model(path=str(folder)))["config_hash"]
    file.write_text(json.dumps(config | {"rope_theta": 1.0, "time_step_limit": [0.0, float("inf")]}))
    assert config_hash(folder) != before


def test_sharded_weights_are_all_listed(tmp_path):
    folder = made(tmp_path)
    model = load_model(folder)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    files = weight_files(tmp_path / "sharded")
    assert len(files) > 1 and {file.name for file in files} == {
        file.name for file in (tmp_path / "sharded").glob("*.safetensors")}
    assert load_model(tmp_path / "sharded").state_dict().keys() == model.state_dict().keys()


def test_facts_are_plain_json_and_name_what_run_json_needs(tmp_path):
    facts = model_facts(Model(path=str(made(tmp_path, vocab=320)), dtype="bfloat16"))
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["vocab_size"], facts["tokens"], facts["dtype"]) == (320, 259, "bfloat16")
    assert facts["eos_token"] == "<|im_end|>" and len(facts["template_hash"]) == 64


def test_a_model_is_loaded_in_evaluation_mode_in_the_dtype_of_its_config(tmp_path):
    model = load_model(Model(path=str(made(tmp_path)), dtype="bfloat16", attention="eager"))
    assert model.dtype == torch.bfloat16 and not model.training
    assert model.config._attn_implementation == "eager"


def test_a_model_that_caps_its_attention_is_run_with_its_caps(tmp_path):
    tiny("gemma2-softcap", vocabulary=300, seed=1).save_pretrained(tmp_path)
    ids = torch.arange(1, 40)[None]
    capped, uncapped = (AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention).eval()(ids).logits
                        for attention in ("eager", "sdpa"))
    assert (capped - uncapped).abs().max() > 0.1
    torch.testing.assert_close(load_model(tmp_path)(ids).logits, capped)
    on_ranks = empty_model((tmp_path / "config.json").read_bytes(), "sdpa")
    assert on_ranks.config._attn_implementation == "eager"
