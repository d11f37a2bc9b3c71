"""Divergences between two distributions over buckets, per position.

Every one is a plain sum over the buckets: over a whole vocabulary it may be taken chunk by chunk and added up
(train/full_vocabulary.py), as long as log_p and log_q were normalised over all of it.

Shapes: N positions, B buckets. p is the student, q the teacher; both come as finite log-probs (outside.py).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from storage.errors import UserError

Divergence = Callable[[Tensor, Tensor, bool], Tensor]
"""(log_p_NB, log_q_NB, stop_gradient) -> loss_N."""


def reverse_kl(log_p_NB: Tensor, log_q_NB: Tensor, stop_gradient: bool = False) -> Tensor:
    """KL(p || q) = sum_u p_u (log p_u - log q_u); with `stop_gradient` log p_u is a constant inside the brackets
    (The Many Faces of OPD, eq. 12)."""
    inner_NB = log_p_NB.detach() if stop_gradient else log_p_NB
    return (log_p_NB.exp() * (inner_NB - log_q_NB)).sum(1)


def forward_kl(log_p_NB: Tensor, log_q_NB: Tensor, stop_gradient: bool = False) -> Tensor:
    """KL(q || p) = sum_u q_u (log q_u - log p_u)."""
    _refuse_stop_gradient(stop_gradient, "forward_kl")
    return (log_q_NB.exp() * (log_q_NB - log_p_NB)).sum(1)


def jsd(beta: float) -> Divergence:
    """Generalised Jensen-Shannon divergence (GKD, arXiv 2306.13649, section 2), with m = beta q + (1 - beta) p:

        JSD_beta = beta KL(q || m) + (1 - beta) KL(p || m)

    JSD / beta -> KL(q || p) for beta -> 0 and JSD / (1 - beta) -> KL(p || q) for beta -> 1: `beta` of 0 is that forward
    KL and 1 that reverse KL, where JSD itself would vanish. So the scale jumps at the ends, by 1 / beta.
    """
    if beta in (0, 1):
        return forward_kl if beta == 0 else reverse_kl

    def divergence(log_p_NB: Tensor, log_q_NB: Tensor, stop_gradient: bool = False) -> Tensor:
        _refuse_stop_gradient(stop_gradient, "jsd")
        log_m_NB = torch.logaddexp(log_q_NB + math.log(beta), log_p_NB + math.log1p(-beta))
        of_q_NB, of_p_NB = log_q_NB.exp() * (log_q_NB - log_m_NB), log_p_NB.exp() * (log_p_NB - log_m_NB)
        return (beta * of_q_NB + (1 - beta) * of_p_NB).sum(1)

    return divergence


def skewed(alpha: float) -> Divergence:
    """Skewed reverse KL, KL(p || alpha p + (1 - alpha) q) (DistiLLM, arXiv 2402.03898, the alpha-SRKL of section 3).

    Between 0 and -log(alpha), and at most (1 - alpha) KL(p || q); alpha = 0 is the reverse KL.
    """
    if alpha == 0:
        return reverse_kl

    def divergence(log_p_NB: Tensor, log_q_NB: Tensor, stop_gradient: bool = False) -> Tensor:
        _refuse_stop_gradient(stop_gradient, "skewed")
        log_m_NB = torch.logaddexp(log_p_NB + math.log(alpha), log_q_NB + math.log1p(-alpha))
        return (log_p_NB.exp() * (log_p_NB - log_m_NB)).sum(1)

    return divergence


def named(name: str, beta: float | None = None, alpha: float | None = None) -> Divergence:
    """By the name of `objective.divergence`; null parameters are GKD's .5 and DistiLLM's .1."""
    if name == "jsd":
        return jsd(0.5 if beta is None else beta)
    if name == "skewed":
        return skewed(0.1 if alpha is None else alpha)
    return {"reverse_kl": reverse_kl, "forward_kl": forward_kl}[name]


def _refuse_stop_gradient(stop_gradient: bool, name: str) -> None:
    if stop_gradient:
        raise UserError(f"a stop-gradient inside the log-ratio is of reverse_kl alone, not of {name} (forward_kl would "
                        "have no gradient left): drop one of the two")
