"""Every preset against whole distributions in float64, and what a batch may hold without harm."""

import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch

from pipeline.config.load import apply_settings, validate
from pipeline.config.objectives import Dense as DenseConfig
from pipeline.config.objectives import (
    ForwardKLTopK,
    FullVocabulary,
    Gkd,
    Lightning,
    NonOverlapOnly,
    OverlapOnly,
    SampledToken,
    SampledTokenMasked,
    SkewedTopK,
    StopGradientTopK,
    StudentTopK,
    TailBucketTopK,
    TeacherTopKLsm,
    TruncatedTopK,
    UnionTopK,
)
from pipeline.config.objectives import Objective as ObjectiveConfig
from pipeline.objectives import StudentLogits, build
from pipeline.objectives.dense import Dense, WholeVocabulary
from pipeline.objectives.divergence import reverse_kl
from pipeline.objectives.outside import renormalise, tail_bucket, truncate
from pipeline.objectives.presets import PRESETS
from pipeline.objectives.reduction import SequenceMean
from pipeline.objectives.support import Support, TeacherTopK
from storage.codec import snap
from storage.errors import ConfigError, UserError
from tests.objectives.dense_reference import cached, gathered, product_loss, reference, states

torch.set_num_threads(1)
FIRST = [TeacherTopKLsm(), TailBucketTopK(), SampledToken()]
DENSE = [TeacherTopKLsm(), StudentTopK(), UnionTopK(), OverlapOnly(), NonOverlapOnly(), TailBucketTopK(),
         ForwardKLTopK(), Gkd(beta=0.3), SkewedTopK(), StopGradientTopK(), StopGradientTopK(support="teacher_top_k"),
         TruncatedTopK()]
SAMPLED = [SampledToken(), SampledTokenMasked(), Lightning(clip=1.5)]
CONFIGS = DENSE + SAMPLED
SUPPORTS = ("teacher_top_k", "student_top_k", "union", "intersection", "symmetric_difference")
COMPOSITIONS = [DenseConfig(support=support, divergence=divergence, outside=outside) for support, divergence, outside in
                product(SUPPORTS, ("reverse_kl", "forward_kl", "jsd", "skewed"),
                        ("renormalise", "tail_bucket", "truncate"))]
COMPOSITIONS += [DenseConfig(support=support, outside=outside, stop_gradient=True) for support, outside in
                 product(SUPPORTS, ("renormalise", "tail_bucket", "truncate"))]
WHOLE = [FullVocabulary(), Gkd(support="full"), DenseConfig(support="full", divergence="skewed", teacher="live")]
SIZES = [(50, 12, 1), (50, 8, 50), (500, 12, 16)]
LARGE = [(5000, 6, 128), (151936, 2, 64)]
"""(vocabulary, positions, K)."""


def names(value):
    parts = value.model_dump(exclude_defaults=True) if hasattr(value, "model_dump") else {}
    return "-".join([getattr(value, "type", str(value)), *map(str, parts.values())])


def test_every_objective_of_the_config_has_a_preset_of_its_name_and_a_file_with_its_formula():
    union, _ = get_args(ObjectiveConfig)
    assert {kind.model_fields["type"].default for kind in get_args(union)} == set(PRESETS)
    assert {config.type for config in CONFIGS + WHOLE} == set(PRESETS) - {"custom"}
    for config in CONFIGS + WHOLE:
        assert build(config).name == config.type
    for name, preset in PRESETS.items():
        module = sys.modules[preset.__module__]
        assert Path(module.__file__).stem == preset.__name__ == name
        assert "Not for:" in module.__doc__ and "->" in module.__doc__ and "L_" in module.__doc__, name


def test_an_objective_says_how_long_its_data_last_and_whether_it_sees_the_whole_vocabulary():
    for config in CONFIGS + WHOLE:
        objective = build(config)
        assert objective.age_cap == (4 if config in SAMPLED else 8)
        assert objective.whole_vocabulary == (config in WHOLE)
    for config in WHOLE:
        objective = build(config, "sequence_mean")
        assert isinstance(objective, WholeVocabulary) and objective.teacher == (config.teacher or "cache")
        assert isinstance(objective.reduction, SequenceMean) and not hasattr(objective, "support")


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize(("config", "size"), [*product(CONFIGS, SIZES), *product(FIRST, LARGE),
                                              *product(COMPOSITIONS, [(40, 4, 6)])], ids=names)
def test_value_and_gradient_are_those_of_whole_distributions(config, size, ties):
    vocabulary, positions, k = size
    teacher, before, now = states(positions, vocabulary, seed=k, ties=ties)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5] * positions, dtype=torch.float64)[:positions]
    every = cached(teacher, before, k=k, student_k=min(k, 8), weight_N=weight)
    objective = build(config)

    logits = now.clone().requires_grad_()
    batch = every.select(every.kept_N)
    loss_N = product_loss(objective, batch, logits[every.kept_N])
    loss = (objective.factors(batch) * loss_N).sum() / objective.units(batch)
    loss.backward()

    dense = now.clone().requires_grad_()
    kept = weight.nonzero().flatten().tolist()
    slow = sum(weight[n] * reference(config, teacher[n], before[n], dense[n], every.teacher_topk_ids_NK[n].tolist(),
                                     every.student_topk_ids_Nk[n].tolist(), every.token_ids_N[n]) for n in kept)
    slow = torch.as_tensor(slow, dtype=torch.float64) / len(kept)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-10)
    gradient = torch.autograd.grad(slow, dense)[0] if slow.requires_grad else torch.zeros_like(now)
    torch.testing.assert_close(logits.grad, gradient, atol=1e-10, rtol=0)


@pytest.mark.parametrize("config", [kind(k=5) for kind in (
    TeacherTopKLsm, TailBucketTopK, StudentTopK, UnionTopK, ForwardKLTopK, Gkd, SkewedTopK, StopGradientTopK,
    TruncatedTopK)] + [StudentTopK(k=5, form="policy_gradient")], ids=names)
def test_a_smaller_k_is_as_if_only_so_many_had_been_stored(config):
    teacher, before, now = states(6, 80)
    torch.testing.assert_close(product_loss(build(config), cached(teacher, before, k=20, student_k=9), now),
                               product_loss(build(config), cached(teacher, before, k=5, student_k=5), now),
                               atol=1e-10, rtol=0)


def test_the_stop_gradient_preset_takes_20_of_each_list_or_all_of_a_shorter_one():
    teacher, before, now = states(6, 80)
    batch = cached(teacher, before, k=30, student_k=9)
    for support, same in (("intersection", DenseConfig(support="intersection", stop_gradient=True)),
                          ("teacher_top_k", DenseConfig(outside="truncate", stop_gradient=True))):
        torch.testing.assert_close(product_loss(build(StopGradientTopK(support=support)), batch, now),
                                   product_loss(build(same), cached(teacher, before, k=20, student_k=9), now),
                                   atol=1e-10, rtol=0)


@pytest.mark.parametrize(("settings", "said"), [
    (["type=student_topk", "k=20"], "objective.k = 20 is larger than score.student_top_k = 16"),
    (["type=union_topk", "k=20"], "objective.k = 20 is larger than score.student_top_k = 16"),
    (["type=union_topk", "k=40"], "objective.k = 40 is larger than score.teacher_top_k = 32"),
    (["type=stop_gradient_topk", "k=17"], "objective.k = 17 is larger than score.student_top_k = 16"),
    (["type=dense", "support=student_top_k", "k=17"], "objective.k = 17 is larger than score.student_top_k = 16"),
    (["type=dense", "k=33"], "objective.k = 33 is larger than score.teacher_top_k = 32"),
    (["type=gkd", "beta=1.1"], "objective.beta = 1.1"),
    (["type=skewed_topk", "alpha=1"], "objective.alpha = 1"),
    (["type=gkd", "teacher=live"], "objective.teacher = 'live' with objective.support = 'teacher_top_k'"),
    (["type=gkd", "support=full", "k=8"], "objective.k = 8 with objective.support = 'full'"),
    (["type=dense", "support=full", "outside=truncate"], "outside = 'truncate' with objective.support = 'full'"),
    (["type=dense", "divergence=forward_kl", "stop_gradient=true"], "stop_gradient = true with objective.divergence"),
    (["type=dense", "beta=.5"], "objective.beta is of objective.divergence = 'jsd', not of 'reverse_kl'"),
    (["type=dense", "divergence=jsd", "alpha=.5"], "alpha is of objective.divergence = 'skewed', not of 'jsd'"),
    (["type=full_vocabulary"], "set score.teacher_hidden_states = 'bfloat16', or objective.teacher = 'live'"),
    (["type=dense", "support=full"], "set score.teacher_hidden_states = 'bfloat16'"),
    (["type=stop_gradient_topk", "support=union"], "objective.support = 'union'"),
    (["type=foward_kl_topk"], "did you mean 'forward_kl_topk'?"),
    (["type=lightening"], "did you mean 'lightning'?"),
    (["type=overlap_only", "k=3"], "unknown key objective.k"),
])
def test_keys_that_do_not_go_together_are_refused_in_one_line(settings, said):
    smallest = {"run": "a", "student": {"path": "s"}, "teacher": {"path": "t"},
                "prompts": {"source": {"type": "hub", "name": "openai/gsm8k"}}}
    with pytest.raises(ConfigError) as caught:
        validate(apply_settings(smallest, [f"objective.{setting}" for setting in settings]), "x")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("config", CONFIGS + WHOLE + COMPOSITIONS[:3], ids=names)
def test_a_resolved_config_reads_back_as_itself(config):
    document = {"run": "a", "student": {"path": "s"}, "teacher": {"path": "t"}, "objective": config.model_dump(),
                "prompts": {"source": {"type": "hub", "name": "x"}}, "score": {"teacher_hidden_states": "bfloat16"},
                "mask": [{"type": "special_tokens"}]}
    once = validate(document, "x")
    assert once.objective == config and validate(once.model_dump(mode="json"), "x") == once


def test_a_k_that_was_not_stored_is_refused_in_one_line_that_says_what_to_do():
    teacher, before, _ = states(2, 80)
    with pytest.raises(UserError, match="objective.k = 9, .* top 8: .*score.teacher_top_k = 9"):
        build(TeacherTopKLsm(k=9)).support(cached(teacher, before, k=8))


def test_what_is_renormalised_does_without_the_normaliser():
    assert {config.type for config in CONFIGS if not build(config).needs_log_normaliser} == {
        "teacher_topk_lsm", "student_topk", "union_topk", "overlap_only", "non_overlap_only", "stop_gradient_topk"}
    assert build(StopGradientTopK(support="teacher_top_k")).needs_log_normaliser


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


@pytest.mark.parametrize("outside", [renormalise, tail_bucket, truncate],
                         ids=["renormalise", "tail_bucket", "truncate"])
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
