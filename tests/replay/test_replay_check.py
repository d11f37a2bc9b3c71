"""`--check`: a round repeated comes out as it was, and what differs is named."""

import dataclasses

import pytest

from pipeline.config import load_config
from pipeline.context import open_context
from pipeline.replay.check import check_round
from pipeline.start import start_run
from storage.errors import UserError
from tests.replay.conftest import play, replay
from tests.tiny import config_text


def names(found: dict, same: bool) -> set[str]:
    return {each["what"] for each in found["compared"] if each["same"] is same}


def test_every_byte_of_masks_steps_and_checkpoint_is_compared_and_the_same(played):
    found = check_round(open_context((played / "store").as_posix(), "tiny", 1))
    assert found["same"] and not names(found, same=False)
    assert {"mask shard 0", "mask shard 3", "steps", "closing figures", "checkpoint model.safetensors",
            "checkpoint optimizer.safetensors", "checkpoint config.json"} <= names(found, same=True)


def test_two_threads_come_out_as_two_threads(played, tmp_path):
    (played / "two.toml").write_text(config_text(played, run="two", rounds=1, threads=2, store=tmp_path / "store"))
    config = load_config(played / "two.toml")
    start_run(config)
    play(config.store, "two", 0)
    assert check_round(open_context(config.store, "two", 0))["same"]


def test_a_branch_is_checked_like_any_run(store):
    context, _ = replay(store, settings=["objective.type=tail_bucket_topk"], evaluate=False)
    assert check_round(open_context(store, context.run, 1))["same"]


@pytest.mark.parametrize("change, differing", [
    ({"seed": 77}, {"steps", "closing figures", "checkpoint model.safetensors", "checkpoint optimizer.safetensors"}),
    ({"mask": []}, {"mask shard 0", "mask shard 1", "mask shard 2", "mask shard 3"})], ids=["seed", "mask"])
def test_what_would_come_out_otherwise_is_named(played, change, differing):
    context = open_context((played / "store").as_posix(), "tiny", 1)
    config = context.config.model_copy(update=change)
    found = check_round(dataclasses.replace(context, config=config))
    assert not found["same"] and names(found, same=False) == differing


def test_a_round_that_was_not_trained_has_nothing_to_check(played):
    with pytest.raises(UserError, match="round 2 of tiny has not been trained"):
        check_round(open_context((played / "store").as_posix(), "tiny", 2))
