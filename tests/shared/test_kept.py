"""What a process keeps of a stage is gone once it is dropped: two stages' models need not fit together."""

import gc

import pytest
import torch

from pipeline import kept, stages
from pipeline.config import load_config
from pipeline.context import open_context
from pipeline.start import start_run
from tests.tiny import make_tiny

LOADING = ("rollout", "score", "hidden", "continuation", "evaluate")
"""Stages that keep a model for their next shard; a trainer keeps none."""


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """After each stage of a round: how many modules this process holds, before they are dropped and after."""
    folder = tmp_path_factory.mktemp("kept")
    asked = {"score.teacher_hidden_states": "bfloat16", "continuation.depths": [0, 4]}
    config = load_config(make_tiny(folder, **asked))
    start_run(config)
    context, found = open_context(config.store, config.run, 0), {}
    stages.plan(context)
    kept.drop()
    before = modules()
    for stage in ("prompts", "rollout", "score", "hidden", "continuation", "mask", "train", "evaluate"):
        for shard in context.round.shard_indices(stage):
            stages.run_shard(context, stage, shard)
        held = modules()
        kept.drop()
        found[stage] = held - before, modules() - before
    return found


def modules() -> int:
    gc.collect()
    return sum(issubclass(type(each), torch.nn.Module) for each in gc.get_objects())


@pytest.mark.parametrize("stage", LOADING)
def test_a_stage_keeps_its_models_for_its_next_shard(played, stage):
    assert played[stage][0] > 0


@pytest.mark.parametrize("stage", ["train", *LOADING])
def test_once_dropped_no_model_of_a_stage_is_left(played, stage):
    assert played[stage][1] == 0


def test_a_loader_remembers_its_last_result_until_it_is_dropped():
    calls = []
    load = kept.kept(lambda name: calls.append(name) or object())
    first = load("a")
    assert load("a") is first and calls == ["a"]
    kept.drop()
    assert load("a") is not first and calls == ["a", "a"]
