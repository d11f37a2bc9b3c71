"""Gradients with respect to the student's logits that can be written down. p, q: distributions over V at one state.

Shapes: V vocabulary.
"""

import torch
from torch import Tensor


def full_reverse_kl(p_V: Tensor, q_V: Tensor) -> Tensor:
    log_ratio_V = log_ratio(p_V, q_V)
    return p_V * (log_ratio_V - (p_V * log_ratio_V).sum())


def full_forward_kl(p_V: Tensor, q_V: Tensor) -> Tensor:
    return p_V - q_V


def renormalised_reverse_kl(p_V: Tensor, q_V: Tensor, inside_V: Tensor) -> Tensor:
    p_V, q_V = p_V * inside_V, q_V * inside_V
    return full_reverse_kl(p_V / p_V.sum(), q_V / q_V.sum())


def renormalised_forward_kl(p_V: Tensor, q_V: Tensor, inside_V: Tensor) -> Tensor:
    p_V, q_V = p_V * inside_V, q_V * inside_V
    return p_V / p_V.sum() - q_V / q_V.sum()


def tail_bucket_reverse_kl(p_V: Tensor, q_V: Tensor, inside_V: Tensor) -> Tensor:
    """p_v (c - KL), c the log-ratio of the id, or of the bucket it is in."""
    p_out, q_out = p_V[~inside_V].sum(), q_V[~inside_V].sum()
    cost_V = torch.where(inside_V, log_ratio(p_V, q_V), log_ratio(p_out, q_out))
    return p_V * (cost_V - (p_V * cost_V).sum())


def tail_bucket_forward_kl(p_V: Tensor, q_V: Tensor, inside_V: Tensor) -> Tensor:
    p_out, q_out = p_V[~inside_V].sum(), q_V[~inside_V].sum()
    return torch.where(inside_V, p_V - q_V, p_V * (1 - q_out / p_out))


def stopped_truncated_reverse_kl(p_V: Tensor, q_V: Tensor, inside_V: Tensor) -> Tensor:
    cost_V = torch.where(inside_V, log_ratio(p_V, q_V), torch.zeros_like(p_V))
    return p_V * (cost_V - (p_V * cost_V).sum())


def mass(p_V: Tensor, inside_V: Tensor) -> Tensor:
    """Gradient of P_S."""
    return p_V * (inside_V.to(p_V.dtype) - p_V[inside_V].sum())


def truncated_reverse_kl(p_V: Tensor, q_V: Tensor, inside_V: Tensor) -> Tensor:
    return stopped_truncated_reverse_kl(p_V, q_V, inside_V) + mass(p_V, inside_V)


def truncated_forward_kl(p_V: Tensor, q_V: Tensor, inside_V: Tensor) -> Tensor:
    return p_V * q_V[inside_V].sum() - q_V * inside_V


def sampled_token(p_V: Tensor, token: int, advantage: Tensor) -> Tensor:
    """Of -A log p(y)."""
    gradient_V = advantage * p_V
    gradient_V[token] -= advantage
    return gradient_V


def log_ratio(p: Tensor, q: Tensor) -> Tensor:
    """log p / q, 0 where p is."""
    return torch.where(p > 0, p.log() - q.log(), torch.zeros_like(p))
