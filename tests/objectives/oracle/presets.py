"""The presets of the config, spelled out; and a step's loss under each reduction.

Shapes: N positions, V vocabulary.
"""

import torch
from torch import Tensor

from tests.objectives.oracle import dense, sampled
from tests.objectives.oracle.states import States, log_softmax, ranked

TEACHER_TAIL = {"support": "teacher_top_k", "outside": "tail_bucket"}
RENORMALISED = {"divergence": "reverse_kl", "outside": "renormalise"}
COMPOSITIONS = {
    "teacher_topk_lsm": {"support": "teacher_top_k", **RENORMALISED},
    "union_topk": {"support": "union", **RENORMALISED},
    "overlap_only": {"support": "intersection", **RENORMALISED},
    "non_overlap_only": {"support": "symmetric_difference", **RENORMALISED},
    "tail_bucket_topk": {"divergence": "reverse_kl", **TEACHER_TAIL},
    "forward_kl_topk": {"divergence": "forward_kl", **TEACHER_TAIL},
    "skewed_topk": {"divergence": "skewed", **TEACHER_TAIL},
    "truncated_topk": {"support": "teacher_top_k", "divergence": "reverse_kl", "outside": "truncate"},
    "full_vocabulary": {"support": "full", **RENORMALISED},
}
POLICY_GRADIENT = {"gamma": 0.0, "advantage": "rollout", "ratio": "none", "clip_low": 0.2, "clip_high": 0.2,
                   "ratio_cap": 2.0, "baseline": "none", "advantage_clip": None}


def composition(config: dict) -> dict | None:
    """Keyword arguments of dense.loss_N for a [objective] section; None for a policy gradient."""
    kind = config["type"]
    keys = {name: config[name] for name in ("k", "alpha", "beta") if config.get(name) is not None}
    if kind in COMPOSITIONS:
        return {**COMPOSITIONS[kind], **keys}
    if kind == "gkd":
        whole = {"support": "full", "outside": "renormalise"}
        return {"divergence": "jsd", **(whole if config.get("support") == "full" else TEACHER_TAIL), **keys}
    if kind == "student_topk" and config.get("form", "loss") == "loss":
        return {"support": "student_top_k", **RENORMALISED, **keys}
    if kind == "stop_gradient_topk":
        support = config.get("support", "intersection")
        outside = "renormalise" if support == "intersection" else "truncate"
        return {"k": 20, **keys, "support": support, "divergence": "reverse_kl", "outside": outside,
                "stop_gradient": True}
    if kind == "dense":
        return {"support": config["support"], "divergence": config["divergence"],
                "outside": config.get("outside", "renormalise"),
                "stop_gradient": config.get("stop_gradient", False), **keys}
    return None


def loss_N(logits_NV: Tensor, states: States, config: dict) -> Tensor:
    composed = composition(config)
    if composed is not None:
        return dense.loss_N(logits_NV, states, **composed)
    if config["type"] == "student_topk":
        return student_list_surrogate_N(logits_NV, states, config.get("k"), config.get("clip", 0.2))
    if config["type"] == "lightning":
        bound = config.get("clip", 10.0)
        config = {"advantage": "current", "advantage_clip": bound}
    return policy_gradient_N(logits_NV, states, {**POLICY_GRADIENT, **config})


def policy_gradient_N(logits_NV: Tensor, states: States, keys: dict) -> Tensor:
    log_prob_N = sampled.log_probs_N(logits_NV, states)
    reward_N = sampled.rewards_N(logits_NV, states, keys["advantage"])
    advantage_N = sampled.returns_N(reward_N, states, keys["gamma"])
    if keys["baseline"] == "kl":
        advantage_N = advantage_N + dense.loss_N(states.behaviour_NV, states, support="student_top_k",
                                                 divergence="reverse_kl", outside="tail_bucket")
    if keys["advantage_clip"] is not None:
        advantage_N = advantage_N.clamp(-keys["advantage_clip"], keys["advantage_clip"])
    rho_N = sampled.ratio_N(log_prob_N, states)
    low, high = ((1 - keys["clip_low"], 1 + keys["clip_high"]) if keys["ratio"] == "two_sided"
                 else (keys["clip_low"], keys["clip_high"]))
    return torch.stack([sampled.surrogate(log_prob_N[n], rho_N[n], advantage_N[n].detach(), keys["ratio"], low=low,
                                          high=high, cap=keys["ratio_cap"]) for n in range(len(states))])


def student_list_surrogate_N(logits_NV: Tensor, states: States, k: int | None, clip: float) -> Tensor:
    """-sum over S of min(rho_u A_u, clip(rho_u) A_u), A_u = p_0^(u) (log q(u) - log p_0(u)), rho_u = p(u) / p_0(u).

    As Rethinking OPD's code has it (thunlp/OPD 0a44395: weights of the reward renormalised on S, log-ratios raw)."""
    log_p_NV, log_p0_NV = log_softmax(logits_NV), log_softmax(states.behaviour_NV)
    log_q_NV = log_softmax(states.teacher_NV)
    rows = []
    for n in range(len(states)):
        total = 0.0
        ids = ranked(states.behaviour_NV[n:n + 1], k or states.stored_student)[0].tolist()
        mass = sum(log_p0_NV[n, u].exp() for u in ids)
        for u in ids:
            advantage = log_p0_NV[n, u].exp() / mass * (log_q_NV[n, u] - log_p0_NV[n, u])
            rho = (log_p_NV[n, u] - log_p0_NV[n, u]).clamp(-20, 20).exp()
            total = total - torch.minimum(rho * advantage, rho.clamp(1 - clip, 1 + clip) * advantage)
        rows.append(total)
    return torch.stack(rows)


def loss_and_gradient(states: States, config: dict) -> tuple[Tensor, Tensor]:
    """loss_N and the gradient of each with respect to its own row of the student's logits."""
    logits_NV = states.student_NV.clone().requires_grad_()
    losses_N = loss_N(logits_NV, states, config)
    if not losses_N.requires_grad:
        return losses_N, torch.zeros_like(logits_NV)
    return losses_N.detach(), torch.autograd.grad(losses_N.sum(), logits_NV)[0]


def step_loss(states: States, config: dict, reduction: str) -> Tensor:
    """A step's loss over all positions, masked ones too: they weigh nothing and are not counted."""
    kept = states.kept
    losses_N, _ = loss_and_gradient(kept, config)
    if reduction == "token_mean":
        return sum(w * loss for w, loss in zip(kept.weight_N, losses_N)) / len(kept)
    rollouts = sorted(set(kept.rollout_N.tolist()))
    means = []
    for rollout in rollouts:
        of_it = [n for n in range(len(kept)) if kept.rollout_N[n] == rollout]
        means.append(sum(kept.weight_N[n] * losses_N[n] for n in of_it) / len(of_it))
    return sum(means) / len(rollouts)
