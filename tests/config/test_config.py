"""A config is strict, and every mistake in it is one line that names the key."""

import random
import string
import tomllib
from pathlib import Path

import pytest

from pipeline.config.load import apply_settings, load_config, validate
from pipeline.config.template import to_toml
from storage.errors import ConfigError

ROOT = Path(__file__).parents[2]
SMALLEST = {"run": "a", "student": {"path": "s"}, "teacher": {"path": "t"},
            "prompts": {"source": {"type": "hub", "name": "openai/gsm8k"}}}


def config(*settings):
    return validate(apply_settings(SMALLEST, list(settings)), where="test")


def refusal(*settings) -> str:
    with pytest.raises(ConfigError) as caught:
        config(*settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_smallest_config_takes_the_papers_defaults():
    found = config()
    assert found.objective.type == "teacher_topk_lsm" and found.score.teacher_top_k == 32
    assert found.rollout.top_p == 0.9 and found.train.learning_rate == 2e-6


@pytest.mark.parametrize(("setting", "said"), [
    ("prompts.per_roundd=3", "unknown key prompts.per_roundd; did you mean prompts.per_round?"),
    ("prompts.source.nmae='x'", "unknown key prompts.source.nmae; did you mean prompts.source.name?"),
    ("rolout.top_p=.9", "unknown key rolout; did you mean rollout?"),
    ("prompts.per_round=abc", "prompts.per_round = 'abc'"),
    ("prompts.per_round=2.5", "prompts.per_round = 2.5"),
    ("prompts.per_round=true", "prompts.per_round = True"),
    ("seed=-1", "seed = -1"),
    ("rollout.top_p=1.5", "rollout.top_p = 1.5"),
    ("rollout.temperature=0", "rollout.temperature = 0"),
    ("rollout.temperature=1e-4", "rollout.temperature = 0.0001"),
    ("train.beta1=1", "train.beta1 = 1"),
    ("train.beta2=1.0", "train.beta2 = 1.0"),
    ("train.beta1=-0.1", "train.beta1 = -0.1"),
    ("train.learning_rate=inf", "train.learning_rate = inf: Input should be a finite number"),
    ("train.weight_decay=nan", "train.weight_decay = nan: Input should be a finite number"),
    ("rollout.temperature=+inf", "rollout.temperature = inf: Input should be a finite number"),
    ("rollout.top_p=nan", "rollout.top_p = nan: Input should be a finite number"),
    ("mask=[{type='detector',max_log_ratio=-inf}]", "mask.0.max_log_ratio = -inf: Input should be a finite number"),
    ("prompts.per_round=inf", "prompts.per_round = inf"),
    ("student.attention=flash_attention_2",
     "attention = 'flash_attention_2' with dtype = 'float32' (s)"),
    ("objective.type=teacher_topk_lmsm", "did you mean 'teacher_topk_lsm'?"),
    ("objective.k=64", "objective.k = 64 is larger than score.teacher_top_k = 32"),
    ("objective.type=sampled_token_masked", "needs a [[mask]] of type 'special_tokens'"),
    ("mask=[{type='special_tokens',tokns=['a']}]", "unknown key mask.0.tokns; did you mean mask.0.tokens?"),
    ("mask=[{tokens=['a']}]", "missing key mask.0.type"),
    ("student={}", "missing key student.path"),
    ("run.x=1", "lies below a plain value"),
    ("foo", "not of the form a.b=value"),
])
def test_a_bad_key_or_value_is_one_line_that_names_it(setting, said):
    assert said in refusal(setting)


def test_two_settings_that_do_not_go_together_are_one_line_that_names_both():
    said = refusal("train.reduction=sequence_mean", "train.denominator=all")
    assert "train.denominator = 'all'" in said and "train.reduction = 'sequence_mean'" in said


@pytest.mark.parametrize("settings", [
    ["train.beta1=0", "train.beta2=0.0"], ["rollout.temperature=0.001"], ["train.reduction=sequence_mean"],
    ["student.attention=flash_attention_2", "student.dtype=bfloat16"],
    ["teacher.attention=flash_attention_2", "teacher.dtype=bfloat16"]])
def test_values_at_the_edge_are_allowed(settings):
    assert config(*settings)


def test_setting_a_type_drops_the_keys_of_the_old_one_in_any_order():
    for settings in (["objective.type=tail_bucket_topk", "objective.k=8"],
                     ["objective.k=8", "objective.type=tail_bucket_topk"]):
        assert config(*settings).objective.model_dump() == {"type": "tail_bucket_topk", "k": 8}
    begun = {**SMALLEST, "objective": {"type": "teacher_topk_lsm", "k": 4}}
    changed = apply_settings(begun, ["objective.type=sampled_token"])
    assert changed["objective"] == {"type": "sampled_token"}


def test_setting_the_type_that_is_the_default_keeps_its_keys():
    begun = {**SMALLEST, "objective": {"k": 4}}
    assert apply_settings(begun, ["objective.type=teacher_topk_lsm"])["objective"]["k"] == 4


def test_settings_leave_the_document_they_were_given_alone():
    apply_settings(SMALLEST, ["prompts.source.name='other'", "rounds=7"])
    assert SMALLEST["prompts"]["source"]["name"] == "openai/gsm8k" and "rounds" not in SMALLEST


@pytest.mark.parametrize(("content", "said"), [
    (b"", "empty"), (b"# only a comment\n", "empty"), (b"run = ", "not valid TOML"), (b"\xff\xfe\x00", "not UTF-8"),
    (b"a = 1\na = 2\n", "not valid TOML"), (b"x" * (2 << 20), "larger than"), (b"[" * 5000, "not valid TOML"),
])
def test_a_file_that_is_no_config_is_one_line(tmp_path, content, said):
    file = tmp_path / "x.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_a_folder_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_300_malformed_configs_are_each_one_line(tmp_path):
    random.seed(5)
    whole = to_toml(config().model_dump(mode="json"))
    refused = 0
    for _ in range(300):
        at = random.randrange(len(whole))
        damaged = whole[:at] + random.choice(string.printable[:94]) + whole[at + random.randrange(3):]
        try:
            validate(tomllib.loads(damaged), where="x")
        except (ConfigError, tomllib.TOMLDecodeError) as error:
            refused += 1
            assert isinstance(error, tomllib.TOMLDecodeError) or "\n" not in str(error)
    assert refused > 100


def test_the_template_reads_back_as_the_same_config():
    masked = config("mask=[{type='special_tokens'}, {type='sql', file='m.sql'}]", "threads=2")
    assert validate(tomllib.loads(to_toml(masked.model_dump(mode="json"), comments=True)), where="x") == masked


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.toml")), ids=lambda file: file.stem)
def test_every_example_is_a_valid_config(file):
    assert load_config(file).run
