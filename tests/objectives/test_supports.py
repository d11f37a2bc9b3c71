"""Supports against sets of ids taken from whole distributions, and what the grid does to them."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from pipeline.config.objectives import Dense as DenseConfig
from pipeline.objectives import build
from pipeline.objectives.dense import Dense
from pipeline.objectives.divergence import forward_kl, jsd, reverse_kl, skewed
from pipeline.objectives.outside import RULES, tail_bucket
from pipeline.objectives.support import HALF_STEP, LEAST_LOG_Q, SELECTORS, Intersection, Union, among
from storage.codec import snap
from storage.errors import UserError
from tests.objectives.dense_reference import cached, product_loss, states, support_of

torch.set_num_threads(1)
DIVERGENCES = {"reverse_kl": reverse_kl, "forward_kl": forward_kl, "jsd": jsd(0.3), "skewed": skewed(0.1)}
SIZES = [(60, 12, 8), (60, 5, 9), (20, 12, 12), (12, 12, 5), (12, 5, 12)]
"""(vocabulary, K, k); the last two store all ids of one model."""


def rounded(batch, grid, dtype=torch.float32):
    """As the scorer stores it: lists on the grid, tails exact, float32."""
    lists = {name: snap(getattr(batch, name), grid) for name in
             ("teacher_topk_log_probs_NK", "student_topk_log_probs_Nk", "teacher_at_student_Nk")}
    batch = replace(batch, **lists)
    return replace(batch, **{name: value.to(dtype) for name, value in vars(batch).items() if value.is_floating_point()})


def close(distance, positions, vocabulary, seed=0):
    """Teacher and student whose lists share most ids: `distance` is the spread of their logits' difference."""
    teacher, before, now = states(positions, vocabulary, seed=seed)
    return teacher, teacher + distance * before, now


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("k", [None, 3], ids=["all stored", "k = 3"])
@pytest.mark.parametrize("name", SELECTORS)
def test_a_support_is_its_set_with_the_teachers_exact_mass_on_and_outside_of_it(name, k, size, ties):
    vocabulary, teacher_k, student_k = size
    teacher, before, _ = states(9, vocabulary, seed=teacher_k, ties=ties)
    log_q = teacher.log_softmax(1)
    batch = cached(teacher, before, k=teacher_k, student_k=student_k)
    support = SELECTORS[name](k)(batch)
    for n in range(len(batch)):
        lists = (batch.teacher_topk_ids_NK[n, :k].tolist(), batch.student_topk_ids_Nk[n, :k].tolist())
        ids = set(support_of(name, *lists))
        member = support.member_NS[n]
        found = support.ids_NS[n]
        assert set(found[member].tolist()) == ids and member.sum() == len(ids)
        assert not ids or set(found.tolist()) == ids, "a column that is no member repeats one"
        torch.testing.assert_close(support.teacher_log_probs_NS[n][member], log_q[n][found[member]], atol=1e-10, rtol=0)
        outside = torch.tensor([v for v in range(vocabulary) if v not in ids], dtype=torch.long)
        mass = log_q[n][outside].logsumexp(0)
        if len(outside):
            torch.testing.assert_close(support.teacher_log_outside_N[n], mass, atol=1e-10, rtol=0)
        else:
            assert support.teacher_log_outside_N[n].exp() < 1e-8


@pytest.mark.parametrize("grid", [16, 32])
@pytest.mark.parametrize("name", SELECTORS)
def test_on_the_grid_the_teacher_on_and_outside_a_support_is_still_a_distribution(name, grid):
    teacher, before, _ = close(0.3, 400, 40)
    support = SELECTORS[name](None)(rounded(cached(teacher, before, k=10, student_k=20), grid))
    on = support.teacher_log_probs_NS.double().exp().masked_fill(~support.member_NS, 0).sum(1)
    total = on + support.teacher_log_outside_N.double().exp()
    torch.testing.assert_close(total, torch.ones_like(total), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", SELECTORS)
def test_a_divergence_of_a_student_equal_to_its_teacher_is_not_negative_on_the_grid_and_small(name):
    teacher, before, _ = close(0.3, 400, 40)
    batch = rounded(cached(teacher, before, k=10, student_k=20), 32, torch.float64)
    loss = product_loss(Dense("any", SELECTORS[name](None), reverse_kl, tail_bucket), batch, teacher)
    assert loss.min() >= -1e-12 and loss.max() < 2e-3


def test_entries_that_claim_more_than_the_tail_are_put_back_to_half_a_step_below_it():
    """Tail .1008, of which the student's one other id has .1007: on the grid it reads .1022."""
    q = torch.tensor([[0.8992, 0.1007, 0.00005, 0.00005]], dtype=torch.float64)
    batch = rounded(cached(q.log(), q[:, [1, 0, 2, 3]].log(), k=1, student_k=1), 32, torch.float64)
    assert batch.teacher_at_student_Nk.exp().item() == pytest.approx(0.1022, abs=1e-4)
    support = Union()(batch)
    assert support.teacher_log_outside_N.exp().item() == pytest.approx(0.1008 * HALF_STEP, rel=0.01)
    total = support.teacher_log_probs_NS.exp().sum() + support.teacher_log_outside_N.exp()
    assert total.item() == pytest.approx(1, abs=1e-12)


def test_what_rounding_hides_of_the_mass_outside_a_union_is_at_most_half_a_step_of_the_students_part():
    teacher, before, _ = close(0.5, 2000, 40)
    exact = cached(teacher, before, k=6, student_k=12)
    on_grid = Union()(rounded(exact, 32, torch.float64)).teacher_log_outside_N.exp()
    outside = Union()(exact).teacher_log_outside_N.exp()
    tail = exact.teacher_log_tail_N.exp()
    assert ((on_grid - outside).abs() <= 1.02 * HALF_STEP * tail).all()
    assert (on_grid / outside - 1).abs().median() < HALF_STEP, "and usually far less, where enough lies outside"


def test_float32_keeps_an_outside_that_one_minus_the_mass_would_lose():
    """Both lists hold all but 1e-9; the tail and its split are still right."""
    q = torch.tensor([[0.6, 0.4, 3e-9, 1e-9, 1e-9]], dtype=torch.float64)
    p = torch.tensor([[0.6, 1e-3, 0.398, 1e-4, 1e-4]], dtype=torch.float64)
    batch = cached(q.log(), p.log(), k=2, student_k=2)
    batch = replace(batch, **{name: value.float() for name, value in vars(batch).items() if value.is_floating_point()})
    for name, outside in (("union", 2e-9), ("intersection", 0.4), ("student_top_k", 0.4), ("teacher_top_k", 5e-9),
                          ("symmetric_difference", 0.6)):
        found = SELECTORS[name](None)(batch).teacher_log_outside_N.exp().item()
        assert found == pytest.approx(outside, rel=1e-5), name


def rows_with_and_without_a_common_id():
    """Three rows; the first has disjoint lists, the second equal ones, the third is mixed."""
    teacher, before, now = states(3, 30, seed=4)
    teacher, before = 0.1 * teacher, 0.1 * before
    teacher[0, :4] += 9
    before[0, 10:14] += 9
    teacher[1, :4] += 9
    before[1, :4] += 9
    teacher[2, :4] += 9
    before[2, 2:6] += 9
    return cached(teacher, before, k=4, student_k=4), now


@pytest.mark.parametrize(("divergence", "outside"), product(DIVERGENCES, RULES))
@pytest.mark.parametrize(("name", "empty"), [("intersection", 0), ("symmetric_difference", 1)])
def test_a_row_with_an_empty_support_has_no_loss_and_no_gradient_and_spoils_no_other(name, empty, divergence, outside):
    batch, now = rows_with_and_without_a_common_id()
    assert not SELECTORS[name](None)(batch).member_NS[empty].any()
    objective = Dense("any", SELECTORS[name](None), DIVERGENCES[divergence], RULES[outside])
    logits = now.clone().requires_grad_()
    loss = product_loss(objective, batch, logits)
    gradient, = torch.autograd.grad(loss.sum(), logits)
    assert loss[empty].abs() < 1e-12 and not gradient[empty].any()
    others = [n for n in range(3) if n != empty]
    assert loss.isfinite().all() and gradient.isfinite().all() and gradient[others].any(1).all()


@pytest.mark.parametrize("name", SELECTORS)
def test_log_probs_of_minus_infinity_get_the_least_value_a_loss_can_bear(name):
    teacher, before, now = states(6, 30, seed=2)
    teacher[:, 5:] = -torch.inf
    for k in (4, 8):
        batch = cached(teacher, before, k=k, student_k=6)
        support = SELECTORS[name](None)(batch)
        assert support.teacher_log_probs_NS[support.member_NS].min() >= LEAST_LOG_Q
        assert support.teacher_log_outside_N.isfinite().all()
        logits = now.clone().requires_grad_()
        loss = product_loss(Dense("any", SELECTORS[name](None), reverse_kl, tail_bucket), batch, logits)
        gradient, = torch.autograd.grad(loss.sum(), logits)
        assert loss.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize(("name", "said"), [
    ("teacher_top_k", "teacher's top 6.*score.teacher_top_k = 9.*opd rescore"),
    ("student_top_k", "student's top 5.*score.student_top_k = 9.*opd rescore"),
    ("union", "student's top 5"), ("intersection", "student's top 5"), ("symmetric_difference", "student's top 5")])
def test_a_k_that_was_not_stored_is_refused_naming_the_list(name, said):
    teacher, before, _ = states(2, 30)
    with pytest.raises(UserError, match=f"objective.k = 9, .*{said}") as caught:
        SELECTORS[name](9)(cached(teacher, before, k=6, student_k=5))
    assert "\n" not in str(caught.value)


def test_a_k_that_may_be_less_takes_all_of_each_list():
    teacher, before, _ = states(4, 30)
    batch = cached(teacher, before, k=6, student_k=5)
    for found, expected in zip(vars(Intersection(20, or_less=True)(batch)).values(),
                               vars(Intersection()(batch)).values()):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", SELECTORS)
def test_a_batch_without_positions_has_an_empty_support(name):
    teacher, before, _ = states(3, 30)
    support = SELECTORS[name](None)(cached(teacher, before, k=6).select(torch.zeros(3, dtype=torch.bool)))
    assert len(support.ids_NS) == len(support.teacher_log_outside_N) == 0


def test_among_finds_ids_wherever_they_stand_in_the_row():
    lists = torch.tensor([[7, 3, 9], [1, 2, 0]])
    asked = torch.tensor([[9, 3, 8, 0, 10], [0, 3, 1, 7, 2]])
    assert among(asked, lists).tolist() == [[True, True, False, False, False], [True, False, True, False, True]]


@pytest.mark.parametrize("support", ["teacher_top_k", "student_top_k", "union"])
def test_two_lists_that_hold_the_whole_vocabulary_give_the_full_reverse_kl(support):
    teacher, before, now = states(5, 16, seed=7)
    batch = cached(teacher, before, k=16, student_k=16)
    for outside in ("renormalise", "tail_bucket"):
        loss = product_loss(build(DenseConfig(support=support, outside=outside)), batch, now)
        p = now.softmax(1)
        torch.testing.assert_close(loss, (p * (p.log() - teacher.log_softmax(1))).sum(1), atol=1e-10, rtol=0)
