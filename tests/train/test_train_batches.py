"""Steps and micro-batches: every rollout once per epoch, in an order that only the seed decides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.train.batches import micro_batches, steps_of_epoch
from pipeline.train.probe import probed

IDS = np.random.default_rng(0).integers(1, 2**62, 37)


def test_an_epoch_holds_every_rollout_once_and_the_last_step_may_be_short():
    steps = steps_of_epoch(IDS, seed=1, round_number=2, epoch=0, rollouts_per_step=10)
    assert [len(step) for step in steps] == [10, 10, 10, 7]
    assert sorted(np.concatenate(steps)) == list(range(37))


def test_the_order_is_another_for_another_seed_round_or_epoch_and_the_same_otherwise():
    def order(*key):
        return np.concatenate(steps_of_epoch(IDS, *key, rollouts_per_step=8)).tolist()

    keys = [(1, 2, 0), (2, 2, 0), (1, 3, 0), (1, 2, 1), (2, 1, 0)]
    assert len({tuple(order(*key)) for key in keys}) == len(keys)
    assert order(1, 2, 0) == order(1, 2, 0)


def test_the_order_does_not_depend_on_how_rollouts_lie_in_shards():
    shuffled = np.random.default_rng(3).permutation(len(IDS))
    there = [set(IDS[step]) for step in steps_of_epoch(IDS, 5, 0, 0, 6)]
    here = [set(IDS[shuffled][step]) for step in steps_of_epoch(IDS[shuffled], 5, 0, 0, 6)]
    assert there == here


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 120))
def test_micro_batches_hold_every_rollout_once_within_the_limit(lengths, limit):
    length_R = np.array(lengths)
    batches = micro_batches(np.arange(len(lengths)), length_R, limit)
    rollouts = np.concatenate([batch.rollouts_B for batch in batches]) if batches else np.array([])
    assert sorted(rollouts) == np.flatnonzero(length_R).tolist()
    for batch in batches:
        assert batch.width == length_R[batch.rollouts_B].max()
        assert len(batch.rollouts_B) * batch.width <= limit or len(batch.rollouts_B) == 1


def test_micro_batches_start_with_the_longest():
    widths = [batch.width for batch in micro_batches(np.arange(5), np.array([3, 9, 1, 9, 4]), 9)]
    assert widths == sorted(widths, reverse=True) and widths[0] == 9


@pytest.mark.parametrize("positions", [200_000])
def test_one_position_of_32_is_probed_whatever_the_rollouts_look_like(positions):
    chosen = probed(np.repeat(IDS[:10], positions // 10), np.tile(np.arange(positions // 10), 10))
    assert abs(chosen.mean() - 1 / 32) < 4 * np.sqrt(1 / 32 / positions)
    assert np.array_equal(chosen[5:9], probed(np.repeat(IDS[0], 4), np.arange(5, 9)))
