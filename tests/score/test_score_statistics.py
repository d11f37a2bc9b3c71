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
    ids_RK = top_k(block_RW, K)
    ranks_R = rank(block_RW, tokens_R1, ids_RK, scratch_RW)
    rows = softmax_rows_(block_RW, torch.cat([tokens_R1, ids_RK], 1), ids_RK[:, :1], ids_RK, 300, scratch_RW)
    log_probs_R1, log_probs_RK = rows.log_probs_RJ.split([1, K], dim=1)
    for index, log_q in enumerate(logits_RV.double().log_softmax(-1)):
        expected = dense_row(log_q, log_q, int(tokens_R1[index]), K, 1)
        assert ranks_R[index] == expected["teacher_rank"]
        assert rows.entropy_R[index] == pytest.approx(expected["teacher_entropy"], abs=1e-5)
        assert log_probs_R1[index] == pytest.approx(expected["teacher_log_prob"], rel=1e-6, abs=1e-5)
        assert log_probs_RK[index] == pytest.approx(expected["teacher_topk_log_probs"], rel=1e-6, abs=1e-5)
        assert rows.log_tail_R[index] == pytest.approx(expected["teacher_log_tail"], rel=1e-6, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 4), st.integers(0, 2**31))
def test_a_rank_counts_what_is_larger_whether_the_list_reaches_the_token_or_not(vocabulary, k, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    logits_RV = torch.randn(2, vocabulary, generator=generator)
    if levels:
        logits_RV = (logits_RV * levels).round() / levels
    ids_R1, block_RW = torch.randint(vocabulary, (2, 1), generator=generator), padded(logits_RV)
    found = rank(block_RW, ids_R1, top_k(block_RW, min(k, vocabulary)), torch.empty_like(block_RW))
    assert found.tolist() == [1 + int((row > row[index]).sum()) for row, index in zip(logits_RV, ids_R1[:, 0])]


def test_nothing_but_the_tail_depends_on_the_ids_that_are_listed():
    logits_RW = torch.randn(4, 2 * COLUMNS, generator=torch.Generator().manual_seed(2)) * 3
    ids_RK = top_k(logits_RW, 9)
    found = [softmax_rows_(logits_RW.clone(), ids_RK, ids_RK[:, :1], ids_RK[:, :K], 2 * COLUMNS,
                           torch.empty_like(logits_RW)) for K in (9, 2)]
    assert torch.equal(found[0].log_probs_RJ, found[1].log_probs_RJ)
    assert torch.equal(found[0].entropy_R, found[1].entropy_R)
    assert (found[0].log_tail_R < found[1].log_tail_R).all()


@pytest.mark.parametrize("offset", [-3000.0, 3000.0])
def test_a_number_that_all_logits_share_changes_nothing(offset):
    logits_RW = (torch.randn(4, 2 * COLUMNS, generator=torch.Generator().manual_seed(2)) * 64).round() / 16 + offset
    ids_RK = top_k(logits_RW, 8)
    log_probs_RW = logits_RW.double().log_softmax(1)
    rows = softmax_rows_(logits_RW, ids_RK, ids_RK[:, :1], ids_RK, 2 * COLUMNS, torch.empty_like(logits_RW))
    probs_RW = log_probs_RW.exp()
    entropy_R, tail_R = -(probs_RW * log_probs_RW).sum(1), probs_RW.scatter(1, ids_RK, 0.0).sum(1)
    torch.testing.assert_close(rows.log_probs_RJ.double(), log_probs_RW.gather(1, ids_RK), rtol=0, atol=2e-6)
    torch.testing.assert_close(rows.entropy_R.double(), entropy_R, rtol=0, atol=4e-6)
    torch.testing.assert_close(rows.log_tail_R.double(), tail_R.log(), rtol=0, atol=4e-6)


def test_no_log_prob_is_positive_where_one_token_is_certain():
    logits_RV = torch.full((1, 300), -40.0)
    logits_RV[0, 5] = 60.0
    block_RW = padded(logits_RV)
    ids_RK = top_k(block_RW, 2)
    rows = softmax_rows_(block_RW, ids_RK, ids_RK[:, :1], ids_RK, 300, torch.empty_like(block_RW))
    assert rows.log_probs_RJ.max() <= 0
    assert rows.log_tail_R[0] == pytest.approx(math.log(298) - 100, abs=1e-4)
