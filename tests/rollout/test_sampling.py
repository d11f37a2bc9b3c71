"""What is drawn, and the log-probs that are kept with it, against a slow and obvious reference.

Shapes: B rows, V vocabulary.
"""

import math

import numpy as np
import pytest
import torch

from pipeline.rollout.sampling import draw
from pipeline.streams import uniforms

torch.set_num_threads(1)


def reference_nucleus(logits, temperature: float, top_p: float) -> dict[int, float]:
    """Probability of every id that may be drawn, in float64, one id at a time."""
    scaled = [value / temperature for value in logits.double().tolist()]
    total = math.fsum(math.exp(value - max(scaled)) for value in scaled)
    probabilities = {i: math.exp(value - max(scaled)) / total for i, value in enumerate(scaled)}
    nucleus, mass = {}, 0.0
    for i in sorted(probabilities, key=lambda i: (-scaled[i], i)):
        if mass >= top_p:
            break
        nucleus[i] = probabilities[i]
        mass += probabilities[i]
    return {i: probability / mass for i, probability in nucleus.items()}


def draw_many(logits_V, count: int, temperature: float, top_p: float, **options):
    uniform_B = torch.from_numpy(uniforms(np.arange(count), 1)[:, 0])
    return draw(logits_V.expand(count, -1), uniform_B, temperature, top_p, **options)


def made_up_logits(seed: int, vocabulary: int = 60, spread: float = 2.0, ties: bool = False):
    logits_V = torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * spread
    return logits_V.round() if ties else logits_V


@pytest.mark.parametrize("temperature, top_p", [(1.0, 0.9), (0.7, 0.95), (1.5, 0.5), (1.0, 1.0), (0.8, 1.0)])
def test_tokens_are_drawn_as_often_as_their_probability_says(temperature, top_p):
    logits_V, count = made_up_logits(1), 40_000
    expected = reference_nucleus(logits_V, temperature, top_p)
    ids_B, _, _ = draw_many(logits_V, count, temperature, top_p)
    seen = np.bincount(ids_B.numpy(), minlength=len(logits_V))
    assert {i for i, n in enumerate(seen) if n} <= set(expected)
    large = [i for i, probability in expected.items() if probability * count >= 10]
    chi2 = sum((seen[i] - expected[i] * count) ** 2 / (expected[i] * count) for i in large)
    assert chi2 < len(large) + 4 * math.sqrt(2 * len(large))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("temperature, top_p", [(1.0, 0.9), (0.7, 0.6), (1.3, 0.999), (1.0, 1.0)])
def test_the_nucleus_and_both_log_probs_are_those_of_the_reference(temperature, top_p, ties):
    for seed in range(5):
        logits_V = made_up_logits(seed, ties=ties)
        expected = reference_nucleus(logits_V, temperature, top_p)
        ids_B, raw_B, sampling_B = draw_many(logits_V, 2000, temperature, top_p)
        assert set(ids_B.tolist()) <= set(expected)
        raw = logits_V.double().log_softmax(0)
        for i, raw_log_prob, log_prob in zip(ids_B.tolist(), raw_B.tolist(), sampling_B.tolist()):
            assert abs(raw_log_prob - raw[i].item()) < 1e-5
            assert abs(log_prob - math.log(expected[i])) < 1e-5


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("candidates", [1, 2, 7, 59])
def test_the_number_of_candidates_looked_at_first_changes_nothing(candidates, ties):
    for seed in range(5):
        logits_V = made_up_logits(seed, ties=ties)
        expected = draw_many(logits_V, 500, 1.0, 0.95, candidates=60)
        for mine, theirs in zip(draw_many(logits_V, 500, 1.0, 0.95, candidates=candidates), expected):
            assert torch.equal(mine, theirs)


def test_a_nucleus_always_holds_the_best_token_and_the_lower_id_wins_a_tie():
    logits_V = torch.tensor([0.0, 3.0, 1.0, 3.0, 3.0])
    ids_B, _, sampling_B = draw_many(logits_V, 200, 1.0, 1e-6)
    assert set(ids_B.tolist()) == {1} and (sampling_B == 0).all()
    ids_B, _, _ = draw_many(logits_V, 2000, 1.0, 0.5)
    assert set(ids_B.tolist()) == {1, 3}


def test_without_temperature_and_nucleus_the_sampling_log_prob_is_the_raw_one():
    _, raw_B, sampling_B = draw_many(made_up_logits(3), 500, 1.0, 1.0)
    assert torch.equal(raw_B, sampling_B)


def test_a_certain_token_is_drawn_with_log_prob_zero():
    logits_V = torch.full((300,), -100.0)
    logits_V[123] = 100.0
    for top_p in (0.9, 1.0):
        ids_B, raw_B, sampling_B = draw_many(logits_V, 50, 1.0, top_p)
        assert set(ids_B.tolist()) == {123} and (raw_B == 0).all() and (sampling_B == 0).all()


def test_equal_logits_over_a_large_vocabulary_are_drawn_by_lower_ids():
    logits_V = torch.zeros(5000)
    ids_B, raw_B, sampling_B = draw_many(logits_V, 300, 1.0, 0.5)
    assert ids_B.max() < 2501 and ids_B.min() < 100
    assert torch.allclose(raw_B, torch.tensor(-math.log(5000)), atol=1e-5)
    assert torch.allclose(sampling_B, torch.tensor(-math.log(2500)), atol=1e-3)
