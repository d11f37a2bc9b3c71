"""What is made of the importance ratio: from advantage and ratio to a loss per position.

    rho_t = p(y_t) / mu(y_t),   mu the density that y_t was drawn from

mu is `sampling_log_prob`: p_0 over the whole vocabulary at temperature 1 and top-p 1, the renormalised nucleus under
top-p (an unmoved student then has rho < 1: the nucleus' mass). p_0's log-prob, or a top-K-renormalised one, would be
wrong. The logarithm of rho is clamped to +-20 before it is exponentiated.

Shapes: N positions. A_N and log mu carry no gradient; log p_N does.
"""

from collections.abc import Callable

from torch import Tensor

LOG_RATIO_LIMIT = 20.0

Surrogate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(A_N, log_p_N, log_mu_N) -> loss_N."""


def ratio(log_p_N: Tensor, log_mu_N: Tensor) -> Tensor:
    """rho_N = exp(log p - log mu), differentiable in log p."""
    return (log_p_N - log_mu_N).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def none(advantage_N: Tensor, log_p_N: Tensor, log_mu_N: Tensor) -> Tensor:
    """-A log p: right while p still is the density that was sampled, so for the first step on a rollout."""
    return -advantage_N * log_p_N


def ppo(clip_low: float, clip_high: float) -> Surrogate:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) (PPO, arXiv 1707.06347, eq. 7; two bounds as in DAPO,
    2503.14476). Beyond the bound that A pushes towards, a token has no gradient."""
    def surrogate(advantage_N: Tensor, log_p_N: Tensor, log_mu_N: Tensor) -> Tensor:
        rho_N = ratio(log_p_N, log_mu_N)
        return -(rho_N * advantage_N).minimum(rho_N.clamp(1 - clip_low, 1 + clip_high) * advantage_N)
    return surrogate


def truncated_is(cap: float) -> Surrogate:
    """-sg(min(rho, C)) A log p: truncated importance sampling (Ionides 2008; IMPALA, arXiv 1802.01561)."""
    return _weighted(lambda rho_N: rho_N.clamp_max(cap))


def cispo(clip_low: float, clip_high: float) -> Surrogate:
    """-sg(clip(rho, 1 - clip_low, 1 + clip_high)) A log p: no token loses its gradient (MiniMax-M1, arXiv 2506.13585,
    eq. 4 and 5)."""
    return _weighted(lambda rho_N: rho_N.clamp(1 - clip_low, 1 + clip_high))


def two_sided(clip_low: float, clip_high: float) -> Surrogate:
    """-sg(w) A log p with w = rho within [1 - clip_low, 1 + clip_high] and 0 outside (MOPD, in the MiMo-V2-Flash
    report, arXiv 2601.02780)."""
    return _weighted(lambda rho_N: rho_N.where((rho_N >= 1 - clip_low) & (rho_N <= 1 + clip_high), 0.0))


def _weighted(weight: Callable[[Tensor], Tensor]) -> Surrogate:
    def surrogate(advantage_N: Tensor, log_p_N: Tensor, log_mu_N: Tensor) -> Tensor:
        return -weight(ratio(log_p_N.detach(), log_mu_N)) * advantage_N * log_p_N
    return surrogate


def named(name: str, *, clip_low: float, clip_high: float, cap: float) -> Surrogate:
    """By the name of `objective.ratio`."""
    return {"none": lambda: none, "ppo": lambda: ppo(clip_low, clip_high), "truncated_is": lambda: truncated_is(cap),
            "cispo": lambda: cispo(clip_low, clip_high), "two_sided": lambda: two_sided(clip_low, clip_high)}[name]()
