"""The identities of the objectives' mathematics, in float64 to 1e-10."""

import pytest
import torch

from pipeline.config.model import SampledToken, TailBucketTopK, TeacherTopKLsm
from pipeline.objectives import build
from pipeline.objectives.dense import Dense
from pipeline.objectives.divergence import reverse_kl
from pipeline.objectives.outside import renormalise
from pipeline.objectives.support import TeacherTopK
from tests.objectives.dense_reference import cached, full_reverse_kl, product_loss, states

torch.set_num_threads(1)
EXACT = {"atol": 1e-10, "rtol": 0}
LSM, TAIL, SAMPLED = build(TeacherTopKLsm()), build(TailBucketTopK()), build(SampledToken())


def value_and_gradient(loss_of, logits):
    logits = logits.clone().requires_grad_()
    loss = loss_of(logits)
    return loss.detach(), torch.autograd.grad(loss.sum(), logits)[0]


def same(left, right):
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def rows_of_full_reverse_kl(teacher, now):
    return value_and_gradient(lambda z: torch.stack([full_reverse_kl(t, s) for t, s in zip(teacher, z)]), now)


@pytest.mark.parametrize("objective", [LSM, TAIL], ids=lambda objective: objective.name)
def test_with_the_whole_vocabulary_as_support_lsm_and_tail_bucket_are_the_full_reverse_kl(objective):
    teacher, before, now = states(6, 40)
    batch = cached(teacher, before, k=40)
    same(value_and_gradient(lambda z: product_loss(objective, batch, z), now), rows_of_full_reverse_kl(teacher, now))


@pytest.mark.parametrize("objective", [LSM, TAIL, SAMPLED], ids=lambda objective: objective.name)
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(objective):
    teacher, _, _ = states(6, 60)
    loss, gradient = value_and_gradient(lambda z: product_loss(objective, cached(teacher, teacher, k=9), z), teacher)
    same((loss, gradient), (torch.zeros_like(loss), torch.zeros_like(gradient)))


def test_the_gradient_of_lsm_is_the_centred_log_ratio_on_the_support_and_zero_outside():
    teacher, before, now = states(6, 60)
    batch = cached(teacher, before, k=9)
    loss, gradient = value_and_gradient(lambda z: product_loss(LSM, batch, z), now)
    ids = batch.teacher_topk_ids_NK
    p, q = now.gather(1, ids).softmax(1), teacher.gather(1, ids).softmax(1)
    on_support = p * ((p / q).log() - loss[:, None])
    same((gradient,), (torch.zeros_like(gradient).scatter(1, ids, on_support),))
    same((gradient.gather(1, ids).sum(1),), (torch.zeros(6, dtype=torch.float64),))


def test_a_renormalised_support_of_one_id_has_exactly_no_loss_and_no_gradient():
    teacher, before, now = states(6, 60)
    loss, gradient = value_and_gradient(lambda z: product_loss(LSM, cached(teacher, before, k=1), z), now)
    assert torch.all(loss == 0) and torch.all(gradient == 0)


def test_a_stop_gradient_inside_the_log_ratio_changes_nothing_on_a_renormalised_support():
    teacher, before, now = states(6, 60)
    batch = cached(teacher, before, k=9)
    stopped = Dense("stopped", TeacherTopK(), reverse_kl, renormalise, stop_gradient=True)
    same(value_and_gradient(lambda z: product_loss(stopped, batch, z), now),
         value_and_gradient(lambda z: product_loss(LSM, batch, z), now))


def test_the_full_reverse_kl_is_the_tail_bucket_plus_what_the_bucket_hides():
    teacher, before, now = states(12, 60, seed=3)
    batch = cached(teacher, before, k=9)
    bucketed = product_loss(TAIL, batch, now)
    full, _ = rows_of_full_reverse_kl(teacher, now)
    hidden = []
    for row, ids in enumerate(batch.teacher_topk_ids_NK):
        outside = torch.ones(60, dtype=torch.bool).index_fill(0, ids, False)
        mass = now[row].softmax(0)[outside].sum()
        hidden.append(mass * full_reverse_kl(teacher[row][outside], now[row][outside]))
    same((bucketed + torch.stack(hidden),), (full,))
    assert torch.all(bucketed >= 0) and torch.all(bucketed <= full)


def one_state_every_token(vocabulary=30):
    """The same state once per token of the vocabulary, so that a mean over y ~ p is a sum weighted with p."""
    teacher, now, _ = states(1, vocabulary, seed=5)
    rows = lambda z: z.expand(vocabulary, -1)
    return teacher[0], now[0], cached(rows(teacher), rows(now), k=3, sampled_N=torch.arange(vocabulary)), rows


def test_the_expected_gradient_of_the_sampled_token_is_the_full_reverse_kl_gradient():
    teacher, now, batch, rows = one_state_every_token()
    p = now.softmax(0)
    expected = value_and_gradient(lambda z: p * product_loss(SAMPLED, batch, rows(z)), now)[1]
    same((expected,), (value_and_gradient(lambda z: full_reverse_kl(teacher, z), now)[1],))


def test_k1_as_a_loss_expects_no_gradient_and_k3_expects_the_forward_kl_gradient():
    teacher, now, _, _ = one_state_every_token()
    p, q = now.softmax(0), teacher.softmax(0)
    log_ratio = lambda z: z.log_softmax(0) - teacher.log_softmax(0)
    k1 = value_and_gradient(lambda z: p * log_ratio(z), now)[1]
    k3 = value_and_gradient(lambda z: p * (torch.exp(-log_ratio(z)) - 1 + log_ratio(z)), now)[1]
    forward = value_and_gradient(lambda z: -(q * z.log_softmax(0)).sum(), now)[1]
    same((k1, k3), (torch.zeros_like(k1), forward))


def zipf_teacher():
    """Logits of 1000 ids with q_1 = .443 and mass .808 on the first 8."""
    z = -1.6 * torch.arange(1, 1001, dtype=torch.float64).log()
    q = z.softmax(0)
    assert abs(q[0] - 0.443) < 0.001 and abs(q[:8].sum() - 0.808) < 0.001
    return z[None]


def converged(objective, seed):
    """The student's distribution after Adam on one state, from a random start."""
    teacher = zipf_teacher()
    batch = cached(teacher, teacher, k=8)
    logits = torch.randn(1, 1000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.995 ** max(0, step - 500)
        optimizer.zero_grad()
        product_loss(objective, batch, logits).sum().backward()
        optimizer.step()
    return logits.detach().softmax(1)[0]


def test_the_tail_bucket_converges_to_the_teachers_mass_and_first_probability():
    p, q = converged(TAIL, seed=0), zipf_teacher().softmax(1)[0]
    assert p[:8].sum().item() == pytest.approx(q[:8].sum().item(), rel=0.01)
    assert p[0].item() == pytest.approx(q[0].item(), rel=0.01)


def test_lsm_converges_to_the_teachers_shape_with_a_mass_that_the_start_decides():
    q = zipf_teacher().softmax(1)[0, :8]
    masses = []
    for seed in (0, 1):
        p = converged(LSM, seed)[:8]
        torch.testing.assert_close(p / p.sum(), q / q.sum(), rtol=0.01, atol=0)
        masses.append(p.sum().item())
    assert abs(masses[0] - masses[1]) > 0.01 * masses[0]
