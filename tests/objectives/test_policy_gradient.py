"""Policy gradients: discounting over what was kept, ratios to what was sampled, baselines that change no mean."""

from dataclasses import replace

import pytest
import torch

from pipeline.config.load import apply_settings, validate
from pipeline.config.objectives import Dense, Lightning, SampledToken, SampledTokenMasked, StudentTopK
from pipeline.objectives import StudentLogits, build
from pipeline.objectives.advantage import discounted, kl_baseline
from storage.codec import snap
from storage.errors import ConfigError
from tests.objectives.dense_reference import cached, full_reverse_kl, product_loss, states

torch.set_num_threads(1)
GAMMAS = [0.0, 0.5, 0.97, 1.0]


def rollouts(lengths, gap=0.4, seed=0):
    """(rollout_N, position_N, reward_N) with positions missing at random, as masks and environments leave them."""
    generator = torch.Generator().manual_seed(seed)
    kept = [torch.rand(length, generator=generator) > gap for length in lengths]
    rollout = torch.cat([torch.full((int(each.sum()),), number) for number, each in enumerate(kept)])
    position = torch.cat([each.nonzero()[:, 0] for each in kept])
    return rollout, position, torch.randn(len(rollout), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("lengths", [(1,), (40,), (9, 1, 30, 17), (64, 64)], ids=str)
def test_an_advantage_is_the_discounted_sum_over_the_kept_rest_of_its_own_rollout(gamma, lengths):
    rollout, position, reward = rollouts(lengths)
    slow = [sum(gamma ** (position[j] - position[i]).item() * reward[j] for j in range(i, len(reward))
                if rollout[i] == rollout[j]) for i in range(len(reward))]
    found = discounted(reward, gamma, rollout, position)
    torch.testing.assert_close(found, torch.stack(slow) if slow else reward, atol=1e-12, rtol=0)


def test_masked_positions_still_take_time_and_add_nothing():
    batch = three_rollouts()
    objective = build(SampledTokenMasked(gamma=0.5))
    kept = batch.select(torch.tensor([0, 2, 3, 5, 6, 7]))
    found = objective.advantages(kept, kept.student_log_prob_N)
    reward = batch.teacher_log_prob_N - batch.student_log_prob_N
    assert found[0].item() == pytest.approx((reward[0] + 0.25 * reward[2]).item())
    assert found[1].item() == pytest.approx(reward[2].item())


def three_rollouts(student_k=4):
    """Nine positions of three rollouts."""
    teacher, before, _ = states(9, 40)
    batch = cached(teacher, before, k=8, student_k=student_k)
    return replace(batch, rollout_N=torch.arange(9) // 3, position_N=torch.arange(9) % 3)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_a_batch_without_positions_or_with_one_needs_no_special_case(gamma):
    objective = build(SampledToken(gamma=gamma, baseline="kl", ratio="ppo", advantage="current"))
    teacher, before, now = states(3, 40)
    for rows in (0, 1):
        batch = cached(teacher, before, k=8).select(torch.arange(rows))
        logits = now[:rows].clone().requires_grad_()
        product_loss(objective, batch, logits).sum().backward()
        assert logits.grad.shape == (rows, 40) and logits.grad.isfinite().all()


def one_position(log_ratio, advantage):
    """A batch of one position and the student's log-prob there, with that ratio and advantage; p_0 is elsewhere."""
    teacher, before, _ = states(1, 40)
    batch = cached(teacher, before, k=8)
    log_p = torch.tensor([-1.5], dtype=torch.float64, requires_grad=True)
    student = batch.student_log_prob_N
    batch = replace(batch, sampling_log_prob_N=log_p.detach() - log_ratio, teacher_log_prob_N=student + advantage)
    return batch, log_p


def surrogate(log_ratio, advantage, **keys):
    """(loss, d loss / d log p) of one position."""
    batch, log_p = one_position(log_ratio, advantage)
    loss = build(SampledToken(**keys)).loss(batch, StudentLogits(log_p[:, None], torch.zeros(1, dtype=torch.float64)))
    return loss.item(), torch.autograd.grad(loss.sum(), log_p)[0].item()


@pytest.mark.parametrize(("rho", "advantage", "keys", "slope"), [
    (1.1, 2.0, {"ratio": "none"}, -2.0),
    (1.1, 2.0, {"ratio": "ppo"}, -2.2), (1.3, 2.0, {"ratio": "ppo"}, 0.0), (0.5, 2.0, {"ratio": "ppo"}, -1.0),
    (1.3, -2.0, {"ratio": "ppo"}, 2.6), (0.7, -2.0, {"ratio": "ppo"}, 0.0),
    (1.3, 2.0, {"ratio": "ppo", "clip_high": 0.4}, -2.6), (0.7, -2.0, {"ratio": "ppo", "clip_low": 0.4}, 1.4),
    (1.5, 2.0, {"ratio": "truncated_is"}, -3.0), (7.0, 2.0, {"ratio": "truncated_is"}, -4.0),
    (7.0, 2.0, {"ratio": "truncated_is", "ratio_cap": 3.0}, -6.0), (0.1, 2.0, {"ratio": "truncated_is"}, -0.2),
    (1.1, 2.0, {"ratio": "cispo"}, -2.2), (7.0, 2.0, {"ratio": "cispo"}, -2.4), (0.1, 2.0, {"ratio": "cispo"}, -1.6),
    (1.1, 2.0, {"ratio": "two_sided"}, -2.2), (1.3, 2.0, {"ratio": "two_sided"}, 0.0),
    (0.7, 2.0, {"ratio": "two_sided"}, 0.0), (0.7, -2.0, {"ratio": "two_sided", "clip_low": 0.4}, 1.4),
], ids=str)
def test_each_ratio_has_its_gradient_by_hand(rho, advantage, keys, slope):
    _, found = surrogate(torch.tensor(rho, dtype=torch.float64).log(), advantage, **keys)
    assert found == pytest.approx(slope, abs=1e-12)


@pytest.mark.parametrize(("rho", "advantage", "value"), [(1.1, 2.0, -2.2), (1.3, 2.0, -2.4), (0.7, -2.0, 1.6)])
def test_the_value_of_ppo_is_the_clipped_surrogate(rho, advantage, value):
    found, _ = surrogate(torch.tensor(rho, dtype=torch.float64).log(), advantage, ratio="ppo")
    assert found == pytest.approx(value)


@pytest.mark.parametrize("ratio", ["ppo", "truncated_is", "cispo", "two_sided"])
@pytest.mark.parametrize("log_ratio", [-1e4, 1e4])
def test_a_ratio_that_would_overflow_is_clamped(ratio, log_ratio):
    for advantage in (-1.0, 1.0):
        loss, slope = surrogate(log_ratio, advantage, ratio=ratio)
        assert abs(loss) < 1e9 and abs(slope) < 1e9


@pytest.mark.parametrize("ratio", ["ppo", "truncated_is", "cispo", "two_sided"])
def test_the_ratios_denominator_is_the_density_that_was_sampled(ratio):
    batch, log_p = one_position(0.05, 1.0)
    objective = build(SampledToken(ratio=ratio))
    student = StudentLogits(log_p[:, None], torch.zeros(1, dtype=torch.float64))
    slope = lambda changed: torch.autograd.grad(objective.loss(changed, student).sum(), log_p)[0].item()
    both = replace(batch, student_log_prob_N=batch.student_log_prob_N + 0.1,
                   teacher_log_prob_N=batch.teacher_log_prob_N + 0.1)
    assert slope(both) == pytest.approx(slope(batch)) == pytest.approx(-torch.tensor(0.05).exp().item())
    other = replace(batch, sampling_log_prob_N=batch.sampling_log_prob_N - 0.1)
    assert slope(other) == pytest.approx(-torch.tensor(0.15).exp().item())


def test_the_advantage_is_the_rollouts_students_or_the_current_ones_without_gradient():
    teacher, before, now = states(6, 40)
    batch = cached(teacher, before, k=8)
    at = lambda z: z.log_softmax(1)[torch.arange(6), batch.token_ids_N]
    for keys, log_p in ((SampledToken(), at(before)), (SampledToken(advantage="current"), at(now)),
                        (Lightning(), at(now))):
        advantage = at(teacher) - log_p
        assert advantage.abs().max() < 10
        torch.testing.assert_close(product_loss(build(keys), batch, now), -advantage * at(now), atol=1e-10, rtol=0)
    logits = now.clone().requires_grad_()
    log_p = at(logits)
    product, = torch.autograd.grad(product_loss(build(Lightning()), batch, logits).sum(), logits)
    by_hand, = torch.autograd.grad((-(at(teacher) - at(now)) * log_p).sum(), logits)
    torch.testing.assert_close(product, by_hand, atol=1e-10, rtol=0)


def test_an_advantage_is_clipped_on_both_sides_and_after_its_baseline():
    batch = three_rollouts()
    batch = replace(batch, teacher_log_prob_N=batch.student_log_prob_N + torch.arange(-4, 5) * 5.0)
    log_p = batch.student_log_prob_N
    assert build(Lightning()).advantages(batch, log_p).tolist() == [-10, -10, -10, -5, 0, 5, 10, 10, 10]
    centred = build(SampledToken(baseline="kl")).advantages(batch, log_p)
    clipped = build(SampledToken(baseline="kl", advantage_clip=3.0)).advantages(batch, log_p)
    assert torch.equal(clipped, centred.clamp(-3, 3))


def test_a_sampled_token_that_the_teacher_excludes_costs_100_nats_and_not_infinity():
    batch = replace(three_rollouts(), teacher_log_prob_N=torch.full((9,), -torch.inf, dtype=torch.float64))
    advantage = build(SampledToken()).advantages(batch, batch.student_log_prob_N)
    torch.testing.assert_close(advantage, -100 - batch.student_log_prob_N)


def test_the_kl_baseline_is_minus_the_kl_of_the_coarsened_students_and_the_same_for_every_token():
    teacher, before, _ = states(6, 40)
    whole = cached(teacher, before, k=8, student_k=40)
    exact = torch.stack([full_reverse_kl(t, p) for t, p in zip(teacher, before)])
    torch.testing.assert_close(kl_baseline(whole), -exact, atol=1e-10, rtol=0)
    part = cached(teacher, before, k=8, student_k=5)
    other = cached(teacher, before, k=8, student_k=5, sampled_N=torch.arange(6) + 9)
    assert torch.equal(kl_baseline(part), kl_baseline(other))
    assert ((kl_baseline(part) <= 0) & (kl_baseline(part) >= -exact)).all(), "coarsening hides some of the KL"


@pytest.mark.parametrize("grid", [16, 32])
def test_the_kl_baseline_of_a_list_on_the_grid_is_never_positive_and_finite(grid):
    teacher, before, _ = states(300, 30)
    batch = cached(teacher, 3 * before, k=8, student_k=20)
    names = ("student_topk_log_probs_Nk", "teacher_at_student_Nk", "teacher_topk_log_probs_NK")
    batch = replace(batch, **{name: snap(getattr(batch, name), grid).float() for name in names},
                    teacher_log_tail_N=batch.teacher_log_tail_N.float())
    baseline = kl_baseline(batch)
    assert baseline.isfinite().all() and baseline.max() < 1e-6
    above = batch.student_topk_log_probs_Nk.logsumexp(1) > 0
    assert above.any(), "some rows claim more than all the mass, and are renormalised"
    fitting = replace(batch, student_topk_log_probs_Nk=batch.student_topk_log_probs_Nk.log_softmax(1))
    torch.testing.assert_close(kl_baseline(fitting)[above], baseline[above], atol=1e-5, rtol=0)


def sampled_at_one_state(objective, draws=4000):
    """Gradients of single samples y ~ p at one state, one per row."""
    teacher, now, _ = states(1, 30, seed=5)
    sampled = now.softmax(1)[0].multinomial(draws, replacement=True, generator=torch.Generator().manual_seed(0))
    batch = cached(teacher.expand(draws, -1), now.expand(draws, -1), k=6, student_k=8, sampled_N=sampled)
    batch = replace(batch, sampling_log_prob_N=batch.student_log_prob_N, rollout_N=torch.arange(draws))
    logits = now.repeat(draws, 1).requires_grad_()
    return torch.autograd.grad(product_loss(objective, batch, logits).sum(), logits)[0]


def test_the_kl_baseline_takes_variance_and_leaves_the_mean():
    plain, centred = (sampled_at_one_state(build(SampledToken(baseline=name))) for name in ("none", "kl"))
    spread = lambda g: (g - g.mean(0)).square().sum(1).mean().item()
    assert spread(centred) < 0.7 * spread(plain)
    error = spread(plain) / len(plain)
    assert (plain.mean(0) - centred.mean(0)).square().sum().item() < 3 * error


def list_gradient(batch, at, **keys):
    logits = at.clone().requires_grad_()
    loss = product_loss(build(StudentTopK(form="policy_gradient", **keys)), batch, logits)
    return loss.detach(), torch.autograd.grad(loss.sum(), logits)[0]


def test_the_policy_gradient_over_the_students_list_is_its_formula():
    teacher, before, now = states(5, 40)
    batch = cached(teacher, before, k=8, student_k=6)
    p, p_0, q = (z.softmax(1).gather(1, batch.student_topk_ids_Nk) for z in (now, before, teacher))
    advantage, rho = p_0 / p_0.sum(1, keepdim=True) * (q / p_0).log(), p / p_0
    slow = -torch.minimum(rho * advantage, rho.clamp(0.7, 1.3) * advantage).sum(1)
    torch.testing.assert_close(list_gradient(batch, now, clip=0.3)[0], slow, atol=1e-10, rtol=0)


def test_the_policy_gradient_over_the_students_list_starts_as_the_stopped_reverse_kl_and_ends_beyond_the_clip():
    teacher, before, _ = states(5, 40)
    batch = cached(teacher, before, k=8, student_k=6)
    stopped = build(Dense(support="student_top_k", outside="truncate", stop_gradient=True))
    logits = before.clone().requires_grad_()
    gradient, = torch.autograd.grad(product_loss(stopped, batch, logits).sum(), logits)
    mass = batch.student_topk_log_probs_Nk.exp().sum(1, keepdim=True)
    torch.testing.assert_close(list_gradient(batch, before)[1], gradient / mass, atol=1e-10, rtol=0)
    assert gradient.any()

    # At the teacher, every ratio is beyond the bound that its advantage pushes towards.
    assert not list_gradient(batch, teacher, clip=1e-6)[1].any()


def test_with_a_k_of_one_the_policy_gradient_still_moves_the_students_argmax():
    teacher, before, _ = states(5, 40)
    batch = cached(teacher, before, k=8)
    _, gradient = list_gradient(batch, before, k=1)
    best = before.argmax(1)
    disliked = teacher.log_softmax(1)[torch.arange(5), best] < before.log_softmax(1)[torch.arange(5), best]
    assert torch.equal(gradient[torch.arange(5), best] > 0, disliked)


@pytest.mark.parametrize(("setting", "said"), [
    ("gamma=1.5", "objective.gamma = 1.5"), ("gamma=-0.1", "objective.gamma = -0.1"),
    ("gamma=nan", "objective.gamma = nan"), ("advantage=old", "objective.advantage = 'old'"),
    ("ratio=grpo", "objective.ratio = 'grpo'"), ("clip_low=1.2", "objective.clip_low = 1.2"),
    ("clip_high=0", "objective.clip_high = 0"), ("ratio_cap=inf", "objective.ratio_cap = inf"),
    ("advantage_clip=-1", "objective.advantage_clip = -1"), ("baseline=value", "objective.baseline = 'value'"),
    ("gama=1", "unknown key objective.gama; did you mean objective.gamma?")])
def test_a_bad_key_or_value_is_one_line(setting, said):
    smallest = {"run": "a", "student": {"path": "s"}, "teacher": {"path": "t"},
                "prompts": {"source": {"type": "hub", "name": "openai/gsm8k"}}, "objective": {"type": "sampled_token"}}
    with pytest.raises(ConfigError) as caught:
        validate(apply_settings(smallest, [f"objective.{setting}"]), where="x")
    assert said in str(caught.value) and "\n" not in str(caught.value)
