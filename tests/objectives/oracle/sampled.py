"""Policy gradients on the sampled token, from their definitions, one position after the other.

    r_t   = log q(y_t) - log p(y_t), p: the rollout's policy or the current student's, without a gradient
    A_t   = sum over t' >= t in the same rollout of gamma^(t' - t) r_t', minus the baseline, then clipped
    rho_t = p_now(y_t) / (the density y_t was drawn from), its log within +-20
    none           -A log p                          ppo        -min(rho A, clip(rho, 1 - low, 1 + high) A)
    truncated_is   -sg(min(rho, C)) A log p          cispo      -sg(clip(rho, 1 - low, 1 + high)) A log p   (2506.13585)
    two_sided      -sg(rho, or 0 outside [low, high]) A log p                              (MOPD, 2601.02780)

Shapes: N positions, V vocabulary.
"""

import torch
from torch import Tensor

from tests.objectives.oracle.states import States, log_softmax


def log_probs_N(logits_NV: Tensor, states: States) -> Tensor:
    rows = [log_softmax(logits_NV[n])[states.token_ids_N[n]] for n in range(len(states))]
    return torch.stack(rows)


def rewards_N(logits_NV: Tensor, states: States, advantage: str) -> Tensor:
    student_NV = {"rollout": states.behaviour_NV, "current": logits_NV.detach()}[advantage]
    return log_probs_N(states.teacher_NV, states) - log_probs_N(student_NV, states)


def returns_N(reward_N: Tensor, states: States, gamma: float) -> Tensor:
    """Positions count by their place in the response: a masked one in between still discounts."""
    sums = []
    for t in range(len(states)):
        total = 0.0
        for later in range(t, len(states)):
            if states.rollout_N[later] == states.rollout_N[t]:
                total = total + gamma ** int(states.position_N[later] - states.position_N[t]) * reward_N[later]
        sums.append(total)
    return torch.stack(sums)


def ratio_N(log_prob_N: Tensor, states: States) -> Tensor:
    return (log_prob_N - states.sampling_log_prob_N).clamp(-20, 20).exp()


def surrogate(log_prob: Tensor, rho: Tensor, advantage: Tensor, ratio: str, *, low: float, high: float,
              cap: float) -> Tensor:
    """The loss of one position; `advantage` has no gradient."""
    if ratio == "none":
        return -advantage * log_prob
    if ratio == "ppo":
        return -torch.minimum(rho * advantage, rho.clamp(1 - low, 1 + high) * advantage)
    weight = rho.detach()
    if ratio == "truncated_is":
        weight = weight.clamp(max=cap)
    elif ratio == "cispo":
        weight = weight.clamp(1 - low, 1 + high)
    elif ratio == "two_sided":
        weight = weight if low <= weight <= high else torch.zeros_like(weight)
    return -weight * advantage * log_prob
