"""Drawing without replacement, over rounds and epochs."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prompts.draw import draw_round, hash63, rollout_id, rollout_seed
from storage.errors import UserError


def rounds(pool, seed, per_round, count):
    return [draw_round(pool, seed, number, per_round) for number in range(count)]


@settings(max_examples=150, deadline=None)
@given(size=st.integers(1, 40), per_round=st.integers(1, 40), seed=st.integers(0, 5))
def test_no_round_repeats_a_prompt_and_every_epoch_asks_each_once(size, per_round, seed):
    pool = [hash63("pool", i) for i in range(size)]
    if per_round > size:
        with pytest.raises(UserError, match=f"prompts.per_round = {per_round} is more than the {size} prompts"):
            draw_round(pool, seed, 0, per_round)
        return
    drawn = rounds(pool, seed, per_round, 3 * size // per_round + 2)
    for each in drawn:
        assert len(set(each)) == len(each) == per_round
    slots = [prompt_id for each in drawn for prompt_id in each]
    for epoch in range(len(slots) // size):
        assert sorted(slots[epoch * size:(epoch + 1) * size]) == sorted(pool)


def test_a_round_is_the_same_whoever_draws_it_and_in_whatever_order_the_pool_comes():
    pool = [hash63("pool", i) for i in range(50)]
    assert draw_round(pool, 1, 7, 16) == draw_round(reversed(pool), 1, 7, 16) == rounds(pool, 1, 16, 8)[7]


def test_rounds_epochs_and_seeds_are_drawn_in_different_orders():
    pool = list(range(1000, 1064))
    first, second = rounds(pool, 0, 64, 2)
    assert first != second and sorted(first) == sorted(second) == pool
    assert draw_round(pool, 1, 0, 64) != first


def test_the_first_place_goes_to_every_prompt_equally_often():
    pool = list(range(8))
    counts = Counter(draw_round(pool, seed, 0, 1)[0] for seed in range(4000))
    assert sum((counts[each] - 500) ** 2 / 500 for each in pool) < 7 + 5 * 14 ** 0.5


def test_the_draw_is_the_one_that_stores_were_written_with():
    assert draw_round(range(10), 0, 1, 4) == [9, 2, 0, 3]
    assert rollout_id(0, 1, 2, 3) == 4955605174076772813
    assert rollout_seed(0, 1, 2, 3) == 5661549314201821987


def test_ids_and_seeds_of_rollouts_are_63_bits_and_distinct():
    keys = [(seed, number, prompt, sample) for seed in range(3) for number in range(3) for prompt in range(20)
            for sample in range(4)]
    found = {f(*key) for key in keys for f in (rollout_id, rollout_seed)}
    assert len(found) == 2 * len(keys)
    assert all(0 <= each < 2 ** 63 for each in found) and max(found) > 2 ** 62

