"""The hash and the streams that decide orders, probes and draws: frozen, and as uniform as they promise."""

import math

import numpy as np

from pipeline.streams import hash64, uniforms

FROZEN = 0x6AE515C1C0AC7E37


def test_the_hash_is_frozen_because_stored_runs_depend_on_it():
    assert hash64(1, 2, 3) == np.uint64(FROZEN)
    assert hash64(np.array([3, 1]), 2)[0] == hash64(3, 2)


def test_the_stream_of_a_seed_is_splitmix64():
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # published outputs for seed 0
    np.testing.assert_array_equal(uniforms(np.array([0]), 3)[0], [(each >> 11) * 2.0 ** -53 for each in first])


def test_a_stream_does_not_depend_on_the_streams_beside_it_or_on_its_length():
    seeds = np.array([5, 2 ** 63 - 1, 17])
    whole = uniforms(seeds, 40)
    assert (whole >= 0).all() and (whole < 1).all()
    for row, seed in enumerate(seeds):
        np.testing.assert_array_equal(uniforms(np.array([seed]), 25)[0], whole[row, :25])


def test_streams_of_neighbouring_seeds_and_positions_are_uniform_and_uncorrelated():
    u = uniforms(np.arange(400), 250)
    counts = np.histogram(u, bins=100, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 99 + 5 * math.sqrt(2 * 99)
    for other in (u[:, 1:], u[1:]):
        same = u[:other.shape[0], :other.shape[1]]
        assert abs(np.corrcoef(same.ravel(), other.ravel())[0, 1]) < 5 / math.sqrt(other.size)
