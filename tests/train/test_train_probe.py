"""Drift, effective sample size and mass against their definitions, written out over the whole vocabulary."""

import dataclasses

import pytest
import torch

from pipeline.objectives import TokenBatch
from pipeline.train.current import Current
from pipeline.train.probe import Probe, drift

N, V, K, SMALL_K, GRID = 400, 300, 8, 6, 32


def batch_of(p_NV: torch.Tensor, q_NV: torch.Tensor, grid: int | None = GRID) -> TokenBatch:
    token_N = p_NV.exp().multinomial(1, generator=torch.Generator().manual_seed(0))[:, 0]
    q_NK, q_ids = q_NV.topk(K)
    p_Nk, p_ids = p_NV.topk(SMALL_K)
    snapped = [(value * grid).round() / grid if grid else value for value in (q_NK, p_Nk)]
    sampled_p, sampled_q = (x.gather(1, token_N[:, None])[:, 0] for x in (p_NV, q_NV))
    nothing = torch.zeros(N)
    return TokenBatch(token_N, sampled_q.float(), sampled_p.float(), sampled_p.float(), nothing, nothing, q_ids,
                      snapped[0].float(), p_ids, snapped[1].float(), torch.zeros(N, SMALL_K), torch.ones(N),
                      torch.zeros(N, dtype=torch.long), torch.arange(N))


def now_of(now_NV: torch.Tensor, batch: TokenBatch, rows=slice(None)) -> Current:
    """What the trainer would log of whole distributions."""
    now_NV = now_NV[rows]
    at = lambda ids: now_NV.gather(1, ids[rows])
    return Current(at(batch.token_ids_N[:, None])[:, 0], at(batch.teacher_topk_ids_NK), at(batch.student_topk_ids_Nk),
                   -(now_NV.exp() * now_NV).sum(1), now_NV.topk(SMALL_K).indices)


def distributions(sharpness: float, moved: float) -> tuple:
    random = torch.Generator().manual_seed(1)
    logits = sharpness * torch.randn(N, V, generator=random, dtype=torch.float64)
    other = logits + moved * torch.randn(N, V, generator=random, dtype=torch.float64)
    teacher = sharpness * torch.randn(N, V, generator=random, dtype=torch.float64)
    return logits.log_softmax(1), other.log_softmax(1), teacher.log_softmax(1)


def coarse_kl(p_NV, now_NV, ids_Nk) -> torch.Tensor:
    """KL over the listed ids and one bucket for the rest."""
    inside = torch.zeros(p_NV.shape, dtype=torch.bool).scatter_(1, ids_Nk, True)
    p_tail, now_tail = (x.masked_fill(inside, -torch.inf).logsumexp(1) for x in (p_NV, now_NV))
    kl = (p_NV.exp() * (p_NV - now_NV)).masked_fill(~inside, 0.0).sum(1)
    return kl + p_tail.exp() * (p_tail - now_tail)


@pytest.mark.parametrize("sharpness", [1.0, 4.0, 12.0])
def test_without_a_grid_drift_is_the_kl_of_the_coarsened_distributions(sharpness):
    p, now, q = distributions(sharpness, 0.5)
    batch = batch_of(p, q, grid=None)
    found = drift(batch, now.gather(1, batch.student_topk_ids_Nk), 0.0)
    torch.testing.assert_close(found, coarse_kl(p, now, batch.student_topk_ids_Nk), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sharpness", [1.0, 4.0, 12.0])
def test_an_unmoved_student_has_no_drift_on_the_grid_and_a_moved_one_keeps_its_own(sharpness):
    p, now, q = distributions(sharpness, 0.5)
    batch = batch_of(p, q)
    assert drift(batch, p.gather(1, batch.student_topk_ids_Nk), 0.5 / GRID).mean() < 5e-5
    found = drift(batch, now.gather(1, batch.student_topk_ids_Nk), 0.5 / GRID).mean()
    assert found == pytest.approx(coarse_kl(p, now, batch.student_topk_ids_Nk).mean().item(), rel=0.1, abs=1e-3)


def test_metrics_are_their_definitions_over_all_batches_together():
    p, now, q = distributions(3.0, 1.0)
    batch = batch_of(p, q)
    probe = Probe(GRID)
    now_sampled = now.gather(1, batch.token_ids_N[:, None])[:, 0]
    for rows in (slice(0, 150), slice(150, N)):
        probe.add(batch.select(torch.arange(N)[rows]), now_of(now, batch, rows))
    found = probe.metrics()
    w = (now_sampled - batch.student_log_prob_N).clamp(-20, 20).exp()
    assert found["probe_tokens"] == N
    assert found["ess"] == pytest.approx((w.sum() ** 2 / (N * (w ** 2).sum())).item())
    assert found["student_mass"] == pytest.approx(now.gather(1, batch.teacher_topk_ids_NK).exp().sum(1).mean().item())
    assert found["opd_reverse_kl"] == pytest.approx((now_sampled - batch.teacher_log_prob_N).mean().item())
    assert found["student_entropy"] == pytest.approx(-(now.exp() * now).sum(1).mean().item())


def test_the_kl_to_the_teacher_is_that_of_its_top_k_and_one_bucket():
    p, now, q = distributions(3.0, 1.0)
    inside = torch.zeros(q.shape, dtype=torch.bool).scatter_(1, q.topk(K).indices, True)
    batch = dataclasses.replace(batch_of(p, q, grid=None),
                                teacher_log_tail_N=q.masked_fill(inside, -torch.inf).logsumexp(1))
    probe = Probe(GRID)
    probe.add(batch, now_of(now, batch))
    expected = coarse_kl(now, q, batch.teacher_topk_ids_NK).mean().item()
    assert probe.metrics()["teacher_kl"] == pytest.approx(expected, rel=1e-5)


def test_the_share_of_the_current_top_k_that_has_left_the_cached_one_is_counted_by_hand():
    p, _, q = distributions(3.0, 0.0)
    batch, ids = batch_of(p, q), p.topk(SMALL_K).indices
    gone = ids.clone()
    gone[:N // 2, :3] = p.topk(SMALL_K + 3).indices[:N // 2, SMALL_K:]  # 3 of 6 ids are new on half of the positions
    for topk, expected in ((ids, 0.0), (ids.flip(1), 0.0), (gone, 0.25)):
        probe = Probe(GRID)
        probe.add(batch, dataclasses.replace(now_of(p, batch), topk_ids_Nk=topk))
        assert probe.metrics()["topk_left"] == expected


def test_a_ratio_beyond_twenty_nats_is_clamped_and_stays_finite():
    p, now, q = distributions(3.0, 0.0)
    batch = batch_of(p, q)
    probe = Probe(GRID)
    far = batch.student_log_prob_N.clone()
    far[0] += 800
    probe.add(batch, dataclasses.replace(now_of(p, batch), log_prob_N=far))
    assert 1 / N <= probe.metrics()["ess"] < 1.01 / N


def test_without_probed_positions_the_metrics_are_null():
    found = Probe(GRID).metrics()
    assert found.pop("probe_tokens") == 0
    assert found == dict.fromkeys(("drift", "ess", "student_mass", "opd_reverse_kl", "teacher_kl", "student_entropy",
                                   "topk_left"))
