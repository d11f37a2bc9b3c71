"""Every preset against the dense oracle (oracle/), value and gradient with respect to the student's logits.

Legend: N positions, V vocabulary, S support.
"""

from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter

from pipeline.config.objectives import Objective
from pipeline.models import Head
from pipeline.objectives import build
from pipeline.train.full_vocabulary import full_vocabulary_loss
from tests.objectives.oracle import closed_form, dense, presets, sampled
from tests.objectives.oracle.states import cache, draw, log_softmax, ranked, student_logits

TOLERANCE = 1e-10

DENSE = [
    {"type": "teacher_topk_lsm"}, {"type": "teacher_topk_lsm", "k": 3}, {"type": "student_topk"},
    {"type": "student_topk", "k": 2}, {"type": "union_topk"}, {"type": "union_topk", "k": 3}, {"type": "overlap_only"},
    {"type": "non_overlap_only"}, {"type": "stop_gradient_topk", "k": 5},
    {"type": "stop_gradient_topk", "support": "teacher_top_k", "k": 4}, {"type": "stop_gradient_topk"},
    {"type": "truncated_topk"}, {"type": "truncated_topk", "k": 2}, {"type": "tail_bucket_topk"},
    {"type": "tail_bucket_topk", "k": 3}, {"type": "forward_kl_topk"}, {"type": "forward_kl_topk", "k": 3},
    {"type": "gkd", "beta": 0.0}, {"type": "gkd", "beta": 0.1}, {"type": "gkd", "k": 2}, {"type": "gkd", "beta": 0.9},
    {"type": "gkd", "beta": 1.0}, {"type": "skewed_topk"}, {"type": "skewed_topk", "alpha": 0.7, "k": 3},
    {"type": "skewed_topk", "alpha": 0.0},
]
COMPOSED = [
    {"type": "dense", "support": support, "divergence": divergence, "outside": outside}
    for support in ("teacher_top_k", "student_top_k", "union", "intersection", "symmetric_difference")
    for divergence in ("reverse_kl", "forward_kl", "jsd", "skewed")
    for outside in ("renormalise", "tail_bucket", "truncate")
] + [
    {"type": "dense", "support": support, "divergence": "reverse_kl", "outside": outside, "stop_gradient": True}
    for support in ("teacher_top_k", "union", "intersection") for outside in ("renormalise", "tail_bucket", "truncate")
] + [
    {"type": "dense", "support": support, "divergence": "reverse_kl", "outside": outside, "k": k} for k in (2, 4)
    for support in ("student_top_k", "union", "intersection", "symmetric_difference")
    for outside in ("renormalise", "tail_bucket", "truncate")
] + [
    {"type": "dense", "support": "union", "divergence": "jsd", "outside": "tail_bucket", "beta": 0.8, "k": 3},
    {"type": "dense", "support": "student_top_k", "divergence": "skewed", "outside": "renormalise", "alpha": 0.4},
]
SAMPLED = [
    {"type": "sampled_token"}, {"type": "sampled_token_masked"}, {"type": "sampled_token", "gamma": 0.9},
    {"type": "sampled_token", "gamma": 1.0, "baseline": "kl"}, {"type": "sampled_token", "advantage": "current"},
    {"type": "sampled_token", "advantage": "current", "gamma": 0.5, "baseline": "kl"},
    {"type": "sampled_token", "advantage_clip": 0.5, "baseline": "kl"},
    {"type": "sampled_token", "ratio": "ppo"}, {"type": "sampled_token", "ratio": "ppo", "clip_low": 0.5, "gamma": 1.0},
    {"type": "sampled_token", "ratio": "truncated_is"},
    {"type": "sampled_token", "ratio": "truncated_is", "ratio_cap": 1.0},
    {"type": "sampled_token", "ratio": "cispo", "clip_low": 1.0, "clip_high": 0.28},
    {"type": "sampled_token", "ratio": "two_sided", "clip_low": 0.5, "clip_high": 1.0},
    {"type": "sampled_token", "ratio": "two_sided", "clip_low": 1.0, "clip_high": 4.0, "advantage": "current"},
    {"type": "lightning"}, {"type": "lightning", "clip": 0.5},
    {"type": "student_topk", "form": "policy_gradient"}, {"type": "student_topk", "form": "policy_gradient", "k": 2},
    {"type": "student_topk", "form": "policy_gradient", "clip": 0.5},
]
SHAPES = {
    "plain": {},
    "one id": {"stored_teacher": 1, "stored_student": 1},
    "long lists": {"vocab": 300, "stored_teacher": 128, "stored_student": 64, "positions": 4},
    "ties": {"tied": True},
    "ids that cannot be": {"impossible": 0.3},
    "sure models": {"sharpness": 9.0},
    "stale rollouts": {"drift": 4.0, "positions": 12, "rollouts": 3},
    "ratios beyond e^20": {"drift": 30.0, "positions": 12},
    "alike": {"agreement": 0.97},
    "disjoint lists": {"agreement": -0.9, "stored_teacher": 4, "stored_student": 3},
    "whole vocabulary stored": {"vocab": 12, "stored_teacher": 12, "stored_student": 12},
}


def named(config):
    return "-".join(str(value) for value in config.values())


def section(config):
    return TypeAdapter(Objective).validate_python(config)


def fits(config, states):
    """The config refuses a k above a stored list."""
    return config.get("k") is None or config["k"] <= min(states.stored_teacher, states.stored_student)


def product(states, config, reduction="token_mean"):
    """The objective, the kept batch, loss_N and its gradient, as the trainer asks for them."""
    objective = build(section(config), reduction)
    batch = cache(states).select(states.weight_N != 0)
    logits_NV = states.kept.student_NV.clone().requires_grad_()
    student = student_logits(logits_NV, objective.support(batch))
    if not objective.needs_log_normaliser:
        student = type(student)(student.logits_NS)
    loss_N = objective.loss(batch, student)
    gradient_NV = torch.zeros_like(logits_NV)
    if loss_N.requires_grad:
        gradient_NV = torch.autograd.grad(loss_N.sum(), logits_NV)[0]
    return objective, batch, loss_N.detach(), gradient_NV


def assert_as_the_oracle(states, config, tolerance=TOLERANCE):
    expected_N, expected_NV = presets.loss_and_gradient(states.kept, config)
    assert torch.isfinite(expected_N).all() and torch.isfinite(expected_NV).all()
    _, _, loss_N, gradient_NV = product(states, config)
    assert loss_N.dtype == torch.float64
    torch.testing.assert_close(loss_N, expected_N, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient_NV, expected_NV, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("config", DENSE + SAMPLED, ids=named)
def test_a_preset_is_its_formula(config):
    for shape in SHAPES.values():
        states = draw(17, **shape)
        if fits(config, states):
            assert_as_the_oracle(states, config)



@pytest.mark.parametrize("config", COMPOSED, ids=named)
def test_a_composition_is_its_formula(config):
    for shape in ("plain", "ties", "disjoint lists", "alike", "whole vocabulary stored"):
        states = draw(23, **SHAPES[shape])
        if fits(config, states):
            assert_as_the_oracle(states, config)


@pytest.mark.parametrize("config", [{"type": "teacher_topk_lsm"}, {"type": "tail_bucket_topk"}, {"type": "gkd"},
                                    {"type": "stop_gradient_topk"}, {"type": "sampled_token", "ratio": "ppo"}],
                         ids=named)
def test_formulas_hold_at_a_real_vocabulary(config, real_vocabulary):
    """151,936 ids, 128 of the teacher's and 16 of the student's: within 1e-9, since a tail is a sum of 1e5 numbers."""
    assert_as_the_oracle(real_vocabulary, config, 1e-9)


@pytest.fixture(scope="module")
def real_vocabulary():
    return draw(0, vocab=151_936, positions=2, stored_teacher=128, stored_student=16, masked=False, sharpness=3.0)


@pytest.mark.parametrize("config", [{"type": "teacher_topk_lsm"}, {"type": "union_topk"}, {"type": "overlap_only"},
                                    {"type": "tail_bucket_topk"}, {"type": "truncated_topk"}, {"type": "gkd"},
                                    {"type": "stop_gradient_topk"}, {"type": "skewed_topk"}], ids=named)
def test_an_id_of_the_list_that_the_student_cannot_write_costs_nothing_and_gets_no_gradient(config):
    """0 log 0 = 0. Not so for a forward KL, which is infinite there."""
    states = draw(3, agreement=0.95)
    states.student_NV.scatter_(1, ranked(states.teacher_NV, 2), -torch.inf)
    assert_as_the_oracle(states, config)
    gradient_NV = product(states, config)[3]
    assert (gradient_NV[states.kept.student_NV == -torch.inf] == 0).all()


@pytest.mark.parametrize("config", [{"type": "student_topk"}, {"type": "union_topk"}, {"type": "non_overlap_only"},
                                    {"type": "dense", "support": "union", "divergence": "reverse_kl",
                                     "outside": "truncate"}], ids=named)
def test_an_id_that_the_teacher_cannot_write_costs_100_nats(config):
    """Instead of an infinite loss: as if the teacher's log-prob there were -100."""
    states = draw(3, agreement=0.2)
    ids_N1 = ranked(states.behaviour_NV, 1)
    never_NV = states.teacher_NV.scatter(1, ids_N1, -torch.inf)
    hardly_NV = never_NV.scatter(1, ids_N1, never_NV.logsumexp(1, keepdim=True) - 100)
    expected_N, expected_NV = presets.loss_and_gradient(replace(states, teacher_NV=hardly_NV).kept, config)
    _, _, loss_N, gradient_NV = product(replace(states, teacher_NV=never_NV), config)
    assert expected_N.max() > 5
    torch.testing.assert_close(loss_N, expected_N, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(gradient_NV, expected_NV, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("support", ["teacher_top_k", "student_top_k", "union", "intersection"])
def test_lists_on_the_grid_move_a_loss_by_half_a_step(support):
    """Log-probs in lists are multiples of 1/32 nat. Where the rest of the mass is what the list leaves of 1, a sure
    teacher's rounded list may hold more than 1."""
    states = draw(1, vocab=1000, positions=100, stored_teacher=32, stored_student=16, sharpness=9.0, agreement=0.95,
                  masked=False)
    config = {"type": "dense", "support": support, "divergence": "reverse_kl", "outside": "tail_bucket"}
    exact = cache(states)
    lists = ("teacher_topk_log_probs_NK", "student_topk_log_probs_Nk", "teacher_at_student_Nk")
    rounded = replace(exact, **{name: (32 * getattr(exact, name)).round() / 32 for name in lists})
    assert (rounded.teacher_topk_log_probs_NK.exp().sum(1) > 1).any()
    objective = build(section(config), "token_mean")
    loss_N = objective.loss(rounded, student_logits(states.student_NV, objective.support(rounded)))
    expected_N, _ = presets.loss_and_gradient(states, config)
    assert (loss_N - expected_N).abs().mean() < 1 / 64
    assert (loss_N - expected_N).abs().max() < 1 / 16


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("rollouts", [3, 8])
@pytest.mark.parametrize("config", [{"type": "teacher_topk_lsm"}, {"type": "sampled_token", "gamma": 0.9}], ids=named)
def test_a_step_is_the_reduction_of_its_positions_however_it_is_cut(config, rollouts, reduction):
    """Masked positions weigh nothing, are not counted, and still take up time: gamma sees the gap they leave."""
    states = draw(5, positions=13, rollouts=rollouts)
    expected = presets.step_loss(states, config, reduction)
    objective, batch, loss_N, _ = product(states, config, reduction)
    whole = (objective.factors(batch) * loss_N).sum() / objective.units(batch)
    torch.testing.assert_close(whole, expected, rtol=TOLERANCE, atol=TOLERANCE)
    parts = [batch.select(batch.rollout_N == rollout) for rollout in batch.rollout_N.unique()]
    sums = [(objective.factors(part) * loss_N[batch.rollout_N == part.rollout_N[0]]).sum() for part in parts]
    cut = sum(sums) / sum(objective.units(part) for part in parts)
    torch.testing.assert_close(cut, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_inputs_reach_every_branch_of_the_ratios():
    """Without these the comparisons above would pass for a product that clips nothing."""
    for shape in ("plain", "stale rollouts"):
        states = draw(17, **SHAPES[shape]).kept
        rho_N = sampled.ratio_N(sampled.log_probs_N(states.student_NV, states), states)
        reward_N = sampled.rewards_N(states.student_NV, states, "rollout")
        if shape == "stale rollouts":
            for sign in (-1, 1):
                assert (rho_N[reward_N * sign > 0] < 0.8).any() and (rho_N[reward_N * sign > 0] > 1.2).any()
            assert (rho_N > 2).any() and (rho_N < 0.5).any()
        assert (reward_N.abs() > 0.5).any()
        assert (states.position_N.diff() > 1).any()


WHOLE = [{"type": "full_vocabulary"}, {"type": "gkd", "support": "full", "beta": 0.0},
         {"type": "gkd", "support": "full"},
         {"type": "gkd", "support": "full", "beta": 0.9}, {"type": "gkd", "support": "full", "beta": 1.0},
         {"type": "dense", "support": "full", "divergence": "skewed", "alpha": 0.3},
         {"type": "dense", "support": "full", "divergence": "forward_kl"},
         {"type": "dense", "support": "full", "divergence": "reverse_kl", "stop_gradient": True}]


def whole_vocabulary(config, hidden_ND, weight_VD, teacher_hidden_NE, teacher_weight_VE):
    objective = build(section(config), "token_mean")
    assert objective.whole_vocabulary
    return full_vocabulary_loss(hidden_ND, Head(weight_VD), teacher_hidden_NE, Head(teacher_weight_VE),
                                objective.divergence, stop_gradient=objective.stop_gradient)


@pytest.mark.parametrize("config", WHOLE, ids=named)
@pytest.mark.parametrize("shape", ["plain", "ties", "sure models", "stale rollouts"])
def test_a_whole_vocabulary_objective_is_its_formula(config, shape):
    """Through heads that are the identity: hidden states are logits."""
    states = draw(29, **SHAPES[shape], masked=False)
    expected_N, expected_NV = presets.loss_and_gradient(states, config)
    hidden_NV = states.student_NV.clone().requires_grad_()
    identity_VV = torch.eye(hidden_NV.shape[1], dtype=torch.float64)
    loss_N = whole_vocabulary(config, hidden_NV, identity_VV.clone().requires_grad_(), states.teacher_NV, identity_VV)
    torch.testing.assert_close(loss_N.detach(), expected_N, rtol=TOLERANCE, atol=TOLERANCE)
    loss_N.sum().backward()
    torch.testing.assert_close(hidden_NV.grad, expected_NV, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("config", WHOLE[:3], ids=named)
def test_a_whole_vocabulary_objective_is_its_formula_at_a_real_vocabulary(config):
    """151,936 ids, in chunks; gradients of the hidden states and of the head's weight."""
    generator = torch.Generator().manual_seed(31)
    hidden_ND, teacher_ND = torch.randn(2, 2, 6, generator=generator, dtype=torch.float64)
    weight_VD, teacher_VD = torch.randn(2, 151_936, 6, generator=generator, dtype=torch.float64)
    hidden_ND.requires_grad_()
    weight_VD.requires_grad_()
    states = replace(draw(31, positions=2, masked=False), teacher_NV=teacher_ND @ teacher_VD.T)
    expected_N = presets.loss_N(hidden_ND @ weight_VD.T, states, config)
    expected = torch.autograd.grad(expected_N.sum(), (hidden_ND, weight_VD))
    loss_N = whole_vocabulary(config, hidden_ND, weight_VD, teacher_ND, teacher_VD)
    loss_N.sum().backward()
    torch.testing.assert_close(loss_N, expected_N, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close((hidden_ND.grad, weight_VD.grad), expected, rtol=TOLERANCE, atol=TOLERANCE)


CLOSED = {
    ("full", "reverse_kl", "renormalise", False): lambda p, q, inside: closed_form.full_reverse_kl(p, q),
    ("full", "forward_kl", "renormalise", False): lambda p, q, inside: closed_form.full_forward_kl(p, q),
    ("teacher_top_k", "reverse_kl", "renormalise", False): closed_form.renormalised_reverse_kl,
    ("teacher_top_k", "reverse_kl", "renormalise", True): closed_form.renormalised_reverse_kl,
    ("teacher_top_k", "forward_kl", "renormalise", False): closed_form.renormalised_forward_kl,
    ("teacher_top_k", "reverse_kl", "tail_bucket", False): closed_form.tail_bucket_reverse_kl,
    ("teacher_top_k", "reverse_kl", "tail_bucket", True): closed_form.tail_bucket_reverse_kl,
    ("teacher_top_k", "forward_kl", "tail_bucket", False): closed_form.tail_bucket_forward_kl,
    ("teacher_top_k", "reverse_kl", "truncate", False): closed_form.truncated_reverse_kl,
    ("teacher_top_k", "reverse_kl", "truncate", True): closed_form.stopped_truncated_reverse_kl,
    ("teacher_top_k", "forward_kl", "truncate", False): closed_form.truncated_forward_kl,
}


@pytest.mark.parametrize("parts", CLOSED, ids=str)
def test_the_oracles_gradients_are_those_on_paper(parts):
    support, divergence, outside, stop_gradient = parts
    states = draw(37, masked=False)
    logits_NV = states.student_NV.clone().requires_grad_()
    losses_N = dense.loss_N(logits_NV, states, support=support, divergence=divergence, outside=outside,
                            stop_gradient=stop_gradient)
    gradient_NV = torch.autograd.grad(losses_N.sum(), logits_NV)[0]
    p_NV, q_NV = log_softmax(states.student_NV).exp(), log_softmax(states.teacher_NV).exp()
    inside_NV = torch.zeros_like(p_NV, dtype=torch.bool).scatter(1, ranked(states.teacher_NV, 8), True)
    for n in range(len(states)):
        on_paper_V = CLOSED[parts](p_NV[n], q_NV[n], inside_NV[n])
        torch.testing.assert_close(gradient_NV[n], on_paper_V, rtol=1e-12, atol=1e-12)


def test_the_oracles_policy_gradient_is_the_one_on_paper():
    states = draw(41, masked=False)
    _, gradient_NV = presets.loss_and_gradient(states, {"type": "sampled_token"})
    p_NV, q_NV = log_softmax(states.student_NV).exp(), log_softmax(states.teacher_NV)
    p0_NV = log_softmax(states.behaviour_NV)
    for n, token in enumerate(states.token_ids_N):
        on_paper_V = closed_form.sampled_token(p_NV[n], token, q_NV[n, token] - p0_NV[n, token])
        torch.testing.assert_close(gradient_NV[n], on_paper_V, rtol=1e-12, atol=1e-12)
