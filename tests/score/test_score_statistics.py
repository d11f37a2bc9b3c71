import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.score.statistics import COLUMNS, LOWEST, rank, softmax_rows_, top_k
from tests.score.dense_reference import dense_row, ordered_ids


def padded(logits_RV: torch.Tensor) -> torch.Tensor:
    width = -(-logits_RV.shape[1] // COLUMNS) * COLUMNS
    return torch.nn.functional.pad(logits_RV, (0, width - logits_RV.shape[1]), value=LOWEST)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 40), st.integers(0, 4), st.integers(0, 2**31))
def test_top_k_is_the_head_of_a_stable_sort_however_many_ties(vocabulary, k, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    logits_RV = torch.randn(3, vocabulary, generator=generator)
    if levels:
        logits_RV = (logits_RV * levels).round() / levels * -1.0  # few values, both zeros among them
    k = min(k, vocabulary)
    found = top_k(padded(logits_RV), k)
    assert found.tolist() == [ordered_ids(row)[:k] for row in logits_RV]


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 400.0])
@pytest.mark.parametrize("K", [1, 8, 299])
def test_statistics_agree_with_float64_from_flat_rows_to_certain_ones(scale, K):
    logits_RV = torch.randn(5, 300, generator=torch.Generator().manual_seed(1)) * scale
    block_RW = padded(logits_RV)
    tokens_R1 = torch.tensor([[0], [299], [17], [128], [127]])
    scratch_RW = torch.empty_like(block_RW)
    ranks_R = rank(block_RW, tokens_R1, scratch_RW)
    ids_RK = top_k(block_RW, K)
    rows = softmax_rows_(block_RW, ids_RK[:, :1], 300, scratch_RW)
    entropy_R, log_probs_R1, log_probs_RK = rows.entropy(), rows.log_probs_at(tokens_R1), rows.log_probs_at(ids_RK)
    log_tail_R = rows.log_mass_outside(ids_RK)
    for index, log_q in enumerate(logits_RV.double().log_softmax(-1)):
        expected = dense_row(log_q, log_q, int(tokens_R1[index]), K, 1)
        assert ranks_R[index] == expected["teacher_rank"]
        assert entropy_R[index] == pytest.approx(expected["teacher_entropy"], abs=1e-5)
        assert log_probs_R1[index] == pytest.approx(expected["teacher_log_prob"], rel=1e-6, abs=1e-5)
        assert log_probs_RK[index] == pytest.approx(expected["teacher_topk_log_probs"], rel=1e-6, abs=1e-5)
        assert log_tail_R[index] == pytest.approx(expected["teacher_log_tail"], rel=1e-6, abs=1e-5)


def test_no_log_prob_is_positive_where_one_token_is_certain():
    logits_RV = torch.full((1, 300), -40.0)
    logits_RV[0, 5] = 60.0
    block_RW = padded(logits_RV)
    ids_RK = top_k(block_RW, 2)
    rows = softmax_rows_(block_RW, ids_RK[:, :1], 300, torch.empty_like(block_RW))
    assert rows.log_probs_at(ids_RK).max() <= 0
    assert rows.log_mass_outside(ids_RK)[0] == pytest.approx(math.log(298) - 100, abs=1e-4)
