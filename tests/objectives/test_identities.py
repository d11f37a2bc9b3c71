"""The identities of the objectives' mathematics, in float64 to 1e-10."""

import math
from dataclasses import replace

import pytest
import torch

from pipeline.config.objectives import (
    ForwardKLTopK,
    Gkd,
    NonOverlapOnly,
    OverlapOnly,
    SampledToken,
    SkewedTopK,
    StopGradientTopK,
    StudentTopK,
    TailBucketTopK,
    TeacherTopKLsm,
    TruncatedTopK,
    UnionTopK,
)
from pipeline.objectives import StudentLogits, build
from pipeline.objectives.dense import Dense
from pipeline.objectives.divergence import forward_kl, jsd, named, reverse_kl, skewed
from pipeline.objectives.outside import renormalise, truncate
from pipeline.objectives.support import TeacherTopK
from storage.errors import UserError
from tests.objectives.dense_reference import cached, full_reverse_kl, product_loss, states

torch.set_num_threads(1)
EXACT = {"atol": 1e-10, "rtol": 0}
LSM, TAIL, SAMPLED = build(TeacherTopKLsm()), build(TailBucketTopK()), build(SampledToken())
TRUNCATED, STOPPED = build(TruncatedTopK()), build(StopGradientTopK(support="teacher_top_k"))
FORWARD = build(ForwardKLTopK())
OTHERS = [STOPPED, *(build(kind()) for kind in (StudentTopK, UnionTopK, OverlapOnly, NonOverlapOnly, ForwardKLTopK, Gkd,
                                                SkewedTopK, StopGradientTopK))]


def value_and_gradient(loss_of, logits):
    logits = logits.clone().requires_grad_()
    loss = loss_of(logits)
    return loss.detach(), torch.autograd.grad(loss.sum(), logits)[0]


def same(left, right):
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def rows_of_full_reverse_kl(teacher, now):
    return value_and_gradient(lambda z: torch.stack([full_reverse_kl(t, s) for t, s in zip(teacher, z)]), now)


@pytest.mark.parametrize("objective", [LSM, TAIL, TRUNCATED, build(Gkd(beta=1)), build(SkewedTopK(alpha=0)),
                                       build(UnionTopK())], ids=lambda objective: objective.name)
def test_with_the_whole_vocabulary_as_support_they_are_the_full_reverse_kl(objective):
    teacher, before, now = states(6, 40)
    batch = cached(teacher, before, k=40)
    same(value_and_gradient(lambda z: product_loss(objective, batch, z), now), rows_of_full_reverse_kl(teacher, now))


@pytest.mark.parametrize("objective", [LSM, TAIL, SAMPLED, *OTHERS], ids=lambda objective: objective.name)
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


def test_the_raw_truncation_differs_from_its_stop_gradient_by_the_gradient_of_the_mass():
    teacher, before, now = states(6, 60)
    batch = cached(teacher, before, k=9)
    ids = batch.teacher_topk_ids_NK
    raw, stopped = (value_and_gradient(lambda z: product_loss(each, batch, z), now) for each in (TRUNCATED, STOPPED))
    mass = value_and_gradient(lambda z: z.softmax(1).gather(1, ids).sum(1), now)
    same((raw[0], raw[1] - stopped[1]), (stopped[0], mass[1]))
    assert mass[1].any()


def test_the_raw_truncation_may_be_negative_and_is_not_clamped():
    teacher, _, _ = states(6, 60)
    low = teacher.clone().scatter_add_(1, teacher.topk(9).indices, torch.full((6, 9), -1.0, dtype=torch.float64))
    loss, gradient = value_and_gradient(lambda z: product_loss(TRUNCATED, cached(teacher, teacher, k=9), z), low)
    assert (loss < 0).all() and gradient.any(1).all()


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


def expected(config, now, batch, rows, weight):
    """Gradient at `now` of the loss summed over every token with these weights."""
    return value_and_gradient(lambda z: weight * product_loss(build(config), batch, rows(z)), now)[1]


@pytest.mark.parametrize("advantage", ["rollout", "current"])
def test_a_kl_baseline_leaves_the_expected_gradient_exactly_as_it_was(advantage):
    teacher, now, batch, rows = one_state_every_token()
    batch = replace(batch, rollout_N=torch.arange(len(now)))
    found = expected(SampledToken(baseline="kl", advantage=advantage), now, batch, rows, now.softmax(0))
    same((found,), (value_and_gradient(lambda z: full_reverse_kl(teacher, z), now)[1],))


@pytest.mark.parametrize("config", [
    SampledToken(ratio="truncated_is", ratio_cap=1e9), SampledToken(ratio="cispo", clip_low=1, clip_high=1e9),
    SampledToken(ratio="two_sided", clip_low=1, clip_high=1e9), SampledToken(ratio="ppo", clip_low=1, clip_high=1e9)],
    ids=lambda config: config.ratio)
@pytest.mark.parametrize("baseline", ["none", "kl"])
def test_a_ratio_that_is_not_cut_makes_samples_of_another_density_expect_the_full_gradient(config, baseline):
    """y ~ mu, an arbitrary density; A from the current student."""
    teacher, now, batch, rows = one_state_every_token()
    mu = states(1, len(now), seed=8)[0][0].log_softmax(0)
    batch = replace(batch, rollout_N=torch.arange(len(now)), sampling_log_prob_N=mu)
    config = config.model_copy(update={"advantage": "current", "baseline": baseline})
    found = expected(config, now, batch, rows, mu.exp())
    same((found,), (value_and_gradient(lambda z: full_reverse_kl(teacher, z), now)[1],))


# --- divergences -------------------------------------------------------------------------------------------------


def pairs():
    """(log p, log q, p, q) of twelve states."""
    teacher, _, now = states(12, 40, seed=6)
    log_p, log_q = now.log_softmax(1), teacher.log_softmax(1)
    return log_p, log_q, log_p.exp(), log_q.exp()


def test_jsd_is_gkds_with_the_forward_kl_at_0_and_the_reverse_kl_at_1():
    log_p, log_q, p, q = pairs()
    for beta in (0.1, 0.5, 0.8):
        m = beta * q + (1 - beta) * p
        by_hand = beta * (q * (q / m).log()).sum(1) + (1 - beta) * (p * (p / m).log()).sum(1)
        same((jsd(beta)(log_p, log_q, False),), (by_hand,))
    assert jsd(0) is forward_kl and jsd(1.0) is reverse_kl
    for beta, limit in ((1e-7, forward_kl), (1 - 1e-7, reverse_kl)):
        torch.testing.assert_close(jsd(beta)(log_p, log_q, False) / 1e-7, limit(log_p, log_q, False), rtol=1e-4, atol=0)
    same((jsd(0.5)(log_p, log_q, False),), (jsd(0.5)(log_q, log_p, False),))


def test_the_skewed_kl_is_distillms_and_bounded_where_the_reverse_kl_is_not():
    log_p, log_q, p, q = pairs()
    for alpha in (0.1, 0.6):
        m = alpha * p + (1 - alpha) * q
        found = skewed(alpha)(log_p, log_q, False)
        same((found,), ((p * (p / m).log()).sum(1),))
        assert (found <= (1 - alpha) * reverse_kl(log_p, log_q, False)).all()
    nothing_there = log_q - 90 * (p > 0.01)
    assert skewed(0.1)(log_p, nothing_there, False).max() < -math.log(0.1)
    assert reverse_kl(log_p, nothing_there, False).min() > 10
    assert skewed(0) is reverse_kl


@pytest.mark.parametrize(("name", "parameter"), [("reverse_kl", {}), ("forward_kl", {}), ("jsd", {"beta": 0.3}),
                                                 ("skewed", {"alpha": 0.2})])
def test_a_divergence_is_the_sum_of_its_chunks_and_0_without_a_gradient_at_equality(name, parameter):
    log_p, log_q, _, _ = pairs()
    divergence = named(name, **parameter)
    chunks = sum(divergence(a, b, False) for a, b in zip(log_p.split(7, dim=1), log_q.split(7, dim=1)))
    same((chunks,), (divergence(log_p, log_q, False),))
    assert (chunks > 0).all()
    loss, gradient = value_and_gradient(lambda z: divergence(z.log_softmax(1), log_q, False), log_q)
    same((loss, gradient), (torch.zeros_like(loss), torch.zeros_like(gradient)))


@pytest.mark.parametrize("divergence", [forward_kl, jsd(0.5), skewed(0.1)])
def test_a_stop_gradient_is_refused_where_there_is_none_to_stop(divergence):
    log_p, log_q, _, _ = pairs()
    with pytest.raises(UserError, match="of reverse_kl alone"):
        divergence(log_p, log_q, True)


# --- fixed points ------------------------------------------------------------------------------------------------


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


FORWARD_TRUNCATED = Dense("forward truncated", TeacherTopK(), forward_kl, truncate)


@pytest.mark.parametrize(("objective", "mass", "first"), [
    (TRUNCATED, 0.808 / math.e, 0.443 / math.e), (STOPPED, 0.808, 0.443), (TAIL, 0.808, 0.443), (FORWARD, 0.808, 0.443),
    (FORWARD_TRUNCATED, 1.0, 0.443 / 0.808)], ids=lambda value: getattr(value, "name", None))
def test_each_loss_has_its_fixed_point(objective, mass, first):
    """Raw truncation leaks to q / e, its forward KL pulls all mass onto S; the others end at the teacher."""
    p, q = converged(objective, seed=0), zipf_teacher().softmax(1)[0]
    assert p[:8].sum().item() == pytest.approx(mass, rel=0.01)
    assert p[0].item() == pytest.approx(first, rel=0.01)
    torch.testing.assert_close(p[:8] / p[:8].sum(), q[:8] / q[:8].sum(), rtol=0.01, atol=0)


def test_lsm_converges_to_the_teachers_shape_with_a_mass_that_the_start_decides():
    q = zipf_teacher().softmax(1)[0, :8]
    masses = []
    for seed in (0, 1):
        p = converged(LSM, seed)[:8]
        torch.testing.assert_close(p / p.sum(), q / q.sum(), rtol=0.01, atol=0)
        masses.append(p.sum().item())
    assert abs(masses[0] - masses[1]) > 0.01 * masses[0]


# --- gamma -------------------------------------------------------------------------------------------------------

HORIZON, MOVES, TASKS = 16, 3, 2
"""Steps of a walk; left, stay or right; the teacher of one task likes right, of the other left."""


def random_walks(student_TXM, walks, seed):
    """(state_NT, move_NT, task_N): walks of the student; a state is a place from -HORIZON to HORIZON."""
    generator = torch.Generator().manual_seed(seed)
    task = torch.arange(walks) % TASKS
    place, states_seen, moves = torch.full((walks,), HORIZON), [], []
    for _ in range(HORIZON):
        move = student_TXM[task, place].softmax(1).multinomial(1, generator=generator)[:, 0]
        states_seen.append(place)
        moves.append(move)
        place = (place + move - 1).clamp(0, 2 * HORIZON)
    return torch.stack(states_seen, 1), torch.stack(moves, 1), task


def walk_gradients(student_TXM, teacher_TXM, gamma, walks, seed):
    """The product's gradient of every walk by itself: [walks, tasks, places, moves]."""
    place, move, task = random_walks(student_TXM, walks, seed)
    table = student_TXM.repeat(walks, 1, 1, 1).requires_grad_()
    walk, step = (each.flatten() for each in torch.meshgrid(torch.arange(walks), torch.arange(HORIZON), indexing="ij"))
    at = (task[walk], place.flatten())
    teacher, student = teacher_TXM[at], student_TXM[at]
    batch = replace(cached(teacher, student, k=2, student_k=2, sampled_N=move.flatten()), rollout_N=walk,
                    position_N=step)
    now = table[walk, at[0], at[1]]
    taken = StudentLogits(now.gather(1, batch.token_ids_N[:, None]), now.logsumexp(1))
    loss = build(SampledToken(gamma=gamma)).loss(batch, taken).sum() / HORIZON
    return torch.autograd.grad(loss, table)[0]


def walk_teacher():
    towards = torch.tensor([[-2.0, 0.0, 2.0], [2.0, 0.0, -2.0]], dtype=torch.float64)
    return towards[:, None, :].repeat(1, 2 * HORIZON + 1, 1)


def test_the_variance_of_the_gradient_grows_with_gamma_on_the_two_task_random_walk():
    """Revisiting OPD, appendix E, in small: 9 to 18 times from gamma 0 to 1, early in training."""
    teacher = walk_teacher()
    student = torch.zeros_like(teacher)
    variance = []
    for gamma in (0.0, 0.5, 0.9, 1.0):
        gradient = walk_gradients(student, teacher, gamma, walks=400, seed=1)
        variance.append((gradient - gradient.mean(0)).square().sum((1, 2, 3)).mean().item())
    assert variance == sorted(variance) and 6 < variance[-1] / variance[0] < 40, variance


def test_gamma_1_ends_worst_on_the_two_task_random_walk():
    teacher = walk_teacher()
    distance = []
    for gamma in (0.0, 0.5, 1.0):
        student = torch.zeros_like(teacher)
        for step in range(60):
            student -= 1.5 * walk_gradients(student, teacher, gamma, walks=8, seed=step).sum(0)
        place, _, task = random_walks(student, 400, seed=999)
        at = (task[:, None].expand_as(place), place)
        log_p, log_q = student[at].log_softmax(-1), teacher[at].log_softmax(-1)
        distance.append((log_p.exp() * (log_p - log_q)).sum(-1).mean().item())
    assert distance[2] > max(distance[:2]), distance
