"""Divergences between two distributions over buckets, per position.

Shapes: N positions, B buckets. p is the student, q the teacher; both come as finite log-probs (outside.py).
"""

from collections.abc import Callable

from torch import Tensor

Divergence = Callable[[Tensor, Tensor, bool], Tensor]
"""(log_p_NB, log_q_NB, stop_gradient) -> loss_N."""


def reverse_kl(log_p_NB: Tensor, log_q_NB: Tensor, stop_gradient: bool) -> Tensor:
    """KL(p || q) = sum_u p_u (log p_u - log q_u); with `stop_gradient` log p_u is a constant inside the brackets
    (The Many Faces of OPD, eq. 12)."""
    inner_NB = log_p_NB.detach() if stop_gradient else log_p_NB
    return (log_p_NB.exp() * (inner_NB - log_q_NB)).sum(1)
