"""[train]: what is refused before anything runs."""

import pytest
from pydantic import ValidationError

from pipeline.config.load import load_config
from pipeline.config.train import Lora, Train
from storage.errors import ConfigError
from tests.tiny import make_tiny


def test_the_defaults_are_one_process_that_trains_all_weights():
    settings = Train()
    assert (settings.ranks, settings.lora, settings.optimizer, settings.packing, settings.compile) == (
        1, None, "adamw", "auto", False)


@pytest.mark.parametrize("wrong", [{"ranks": 0}, {"ranks": 2.0}, {"lora": {"rank": 0}}, {"lora": {"alpha": 0}},
                                   {"lora": {"r": 8}}, {"lora": {"target_modules": []}},
                                   {"lora": {"target_modules": "some-linear"}}, {"optimizer": "sgd"},
                                   {"packing": True}, {"compile": 1}], ids=str)
def test_a_value_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValidationError):
        Train(**wrong)


def test_eight_bit_moments_are_not_sharded():
    with pytest.raises(ValidationError, match="adamw8bit' does not shard its state.*set ranks = 1"):
        Train(optimizer="adamw8bit", ranks=2)


def test_an_adapter_is_asked_for_by_any_of_its_keys(tmp_path):
    config = make_tiny(tmp_path)
    assert load_config(config).train.lora is None
    assert load_config(config, ["train.lora.rank=8"]).train.lora == Lora(rank=8)
    assert load_config(config, ['train.lora.target_modules=["q_proj"]']).train.lora.target_modules == ["q_proj"]
    with pytest.raises(ConfigError, match="train.lora.ranks"):
        load_config(config, ["train.lora.ranks=8"])
