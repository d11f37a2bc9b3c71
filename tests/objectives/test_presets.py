"""Every preset against whole distributions in float64, and what a batch may hold without harm."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from pipeline.config.model import Objective as ObjectiveConfig
from pipeline.config.model import SampledToken, SampledTokenMasked, TailBucketTopK, TeacherTopKLsm
from pipeline.objectives import StudentLogits, build
from pipeline.objectives.dense import Dense
from pipeline.objectives.divergence import reverse_kl
from pipeline.objectives.outside import renormalise, tail_bucket
from pipeline.objectives.presets import PRESETS
from pipeline.objectives.reduction import SequenceMean
from pipeline.objectives.support import Support, TeacherTopK
from storage.codec import snap
from storage.errors import UserError
from tests.objectives.dense_reference import cached, gathered, product_loss, reference, states

torch.set_num_threads(1)
CONFIGS = [TeacherTopKLsm(), TailBucketTopK(), SampledToken(), SampledTokenMasked()]
SIZES = [(50, 12, 1), (50, 8, 50), (500, 12, 16), (5000, 6, 128), (151936, 2, 64)]
"""(vocabulary, positions, K)."""


def names(value):
    return getattr(value, "type", str(value))


def test_every_objective_of_the_config_has_a_preset_of_its_name():
    union, _ = get_args(ObjectiveConfig)
    assert {kind.model_fields["type"].default for kind in get_args(union)} == set(PRESETS)
    for config in CONFIGS:
        assert build(config).name == config.type
        assert "Not for" in PRESETS[config.type].__doc__ or "refused" in PRESETS[config.type].__doc__


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_value_and_gradient_are_those_of_whole_distributions(config, size, ties):
    vocabulary, positions, k = size
    teacher, before, now = states(positions, vocabulary, seed=k, ties=ties)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5] * positions, dtype=torch.float64)[:positions]
    every = cached(teacher, before, k=k, weight_N=weight)
    objective = build(config)

    logits = now.clone().requires_grad_()
    batch = every.select(every.kept_N)
    loss_N = product_loss(objective, batch, logits[every.kept_N])
    loss = (objective.factors(batch) * loss_N).sum() / objective.units(batch)
    loss.backward()

    dense = now.clone().requires_grad_()
    kept = weight.nonzero().flatten().tolist()
    slow = sum(weight[n] * reference(config.type, teacher[n], before[n], dense[n],
                                     every.teacher_topk_ids_NK[n].tolist(), every.token_ids_N[n]) for n in kept)
    slow = torch.as_tensor(slow, dtype=torch.float64) / len(kept)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-10)
    gradient = torch.autograd.grad(slow, dense)[0] if slow.requires_grad else torch.zeros_like(now)
    torch.testing.assert_close(logits.grad, gradient, atol=1e-10, rtol=0)


@pytest.mark.parametrize("config", [TeacherTopKLsm(k=5), TailBucketTopK(k=5)], ids=names)
def test_a_smaller_k_is_as_if_only_so_many_had_been_stored(config):
    teacher, before, now = states(6, 80)
    torch.testing.assert_close(product_loss(build(config), cached(teacher, before, k=20), now),
                               product_loss(build(config), cached(teacher, before, k=5), now), atol=1e-10, rtol=0)


def test_a_k_that_was_not_stored_is_refused_in_one_line_that_says_what_to_do():
    teacher, before, _ = states(2, 80)
    with pytest.raises(UserError, match="objective.k = 9, .* top 8: .*score.teacher_top_k = 9"):
        build(TeacherTopKLsm(k=9)).support(cached(teacher, before, k=8))


def test_only_lsm_does_without_the_normaliser():
    assert {config.type for config in CONFIGS if not build(config).needs_log_normaliser} == {"teacher_topk_lsm"}


@pytest.mark.parametrize("grid", [16, 32])
def test_the_tail_bucket_is_never_negative_on_log_probs_that_were_rounded_to_the_grid(grid):
    teacher, _, _ = states(200, 50, seed=9)
    exact = cached(teacher, teacher, k=8)
    rounded = replace(exact, teacher_topk_log_probs_NK=snap(exact.teacher_topk_log_probs_NK, grid))
    loss = product_loss(build(TailBucketTopK()), rounded, teacher)
    assert loss.min() >= -1e-12 and loss.max() < 2 / grid**2


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_logits_of_minus_infinity_and_underflowing_tails_give_finite_losses_and_gradients(config):
    teacher, before, now = states(4, 60)
    teacher[0, 30:], teacher[1, 0] = -torch.inf, 400.0
    now[2, :10], now[3, 1] = -torch.inf, 400.0
    batch = cached(teacher, before, k=40, sampled_N=torch.tensor([3, 0, 20, 1]))
    logits = now.clone().requires_grad_()
    loss = product_loss(build(config), batch, logits)
    gradient, = torch.autograd.grad(loss.sum(), logits)
    assert loss.isfinite().all() and gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_a_batch_without_a_position_has_an_empty_loss_that_can_be_differentiated(config):
    teacher, before, now = states(3, 60)
    objective = build(config)
    batch = cached(teacher, before, k=8).select(torch.zeros(3, dtype=torch.bool))
    logits = now[:0].clone().requires_grad_()
    loss = objective.factors(batch) * product_loss(objective, batch, logits)
    loss.sum().backward()
    assert loss.shape == (0,) and objective.units(batch) == 0


@pytest.mark.parametrize("outside", [renormalise, tail_bucket], ids=["renormalise", "tail_bucket"])
def test_columns_that_repeat_a_member_of_their_row_count_once(outside):
    teacher, before, now = states(5, 60)
    batch = cached(teacher, before, k=6)

    def padded(tokens):
        support = TeacherTopK()(tokens)
        ids = torch.cat([support.ids_NS, support.ids_NS[:, 2:4]], 1)
        log_q = torch.cat([support.teacher_log_probs_NS, support.teacher_log_probs_NS[:, 2:4]], 1)
        member = torch.cat([support.member_NS, torch.zeros(len(ids), 2, dtype=torch.bool)], 1)
        return Support(ids, log_q, support.teacher_log_outside_N, member)

    losses, gradients = [], []
    for select in (TeacherTopK(), padded):
        logits = now.clone().requires_grad_()
        losses.append(product_loss(Dense("any", select, reverse_kl, outside), batch, logits))
        gradients += torch.autograd.grad(losses[-1].sum(), logits)
    torch.testing.assert_close(*losses, atol=1e-12, rtol=0)
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def test_float32_keeps_the_gradient_of_a_tail_that_one_minus_the_mass_would_lose():
    """Student's tail about 1e-10, teacher's .1: the tail's logit must be pushed up by the right amount."""
    now = torch.full((1, 100), -18.0, dtype=torch.float64)
    now[0, :2] = 12.0
    teacher = torch.zeros(1, 100, dtype=torch.float64)
    teacher[0, :2] = 6.0
    objective = build(TailBucketTopK())
    gradients = []
    for dtype in (torch.float64, torch.float32):
        batch = cached(teacher, teacher, k=2)
        batch = replace(batch, **{name: column.to(dtype) for name, column in vars(batch).items()
                                  if column.is_floating_point()})
        logits = now.to(dtype).requires_grad_()
        student = gathered(logits, objective.support(batch), objective)
        gradients += torch.autograd.grad(objective.loss(batch, student).sum(), logits)
    torch.testing.assert_close(gradients[1].double()[0, 2:], gradients[0][0, 2:], rtol=1e-4, atol=0)


def test_the_sequence_mean_gives_every_rollout_the_same_share():
    teacher, before, now = states(5, 60)
    batch = cached(teacher, before, k=6)
    batch = replace(batch, rollout_N=torch.tensor([0, 0, 0, 2, 2]))
    objective = Dense("any", TeacherTopK(), reverse_kl, renormalise, reduction=SequenceMean())
    loss = objective.loss(batch, StudentLogits(now.gather(1, objective.support(batch))))
    mean = (objective.factors(batch) * loss).sum() / objective.units(batch)
    assert mean.item() == pytest.approx((loss[:3].mean() + loss[3:].mean()).item() / 2)
