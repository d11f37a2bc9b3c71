"""Dense objectives from their definitions: a support, the coarsened distributions on it, a divergence.

    full         sum over V
    renormalise  p^ = p / P_S and q^ = q / Q_S on S                                      (REV, MANY, RETH eq. 5)
    tail_bucket  (p_u for u in S, 1 - P_S) against (q_u for u in S, 1 - Q_S)
    truncate     the raw p_u and q_u for u in S: no distributions, so no divergence
    reverse_kl   KL(p || q);  forward_kl  KL(q || p)
    jsd          beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p      (GKD 2306.13649 eq. 1);
                 its ends by name: beta 0 is KL(q || p), beta 1 is KL(p || q)
    skewed       KL(p || alpha p + (1 - alpha) q), the skewed reverse KL                 (DistiLLM 2402.03898)
    stop_gradient  p(u) sg(log p(u) / q(u))                                              (MANY eq. 12)

Shapes: N positions, V vocabulary, A atoms of a coarsened distribution.
"""

import torch
from torch import Tensor

from tests.objectives.oracle.states import States, log_softmax, ranked


def loss_N(logits_NV: Tensor, states: States, *, support: str, divergence: str, outside: str, k: int | None = None,
           beta: float = 0.5, alpha: float = 0.1, stop_gradient: bool = False) -> Tensor:
    """One loss per position; `logits_NV` are the student's, all else is taken from `states`."""
    log_p_NV, log_q_NV = log_softmax(logits_NV), log_softmax(states.teacher_NV)
    rows = []
    for n in range(len(states)):
        ids = support_ids(states, n, support, k)
        p_A, q_A = atoms(log_p_NV[n], ids, outside), atoms(log_q_NV[n], ids, outside)
        rows.append(compare(p_A, q_A, divergence, beta, alpha, stop_gradient))
    return torch.stack(rows)


def support_ids(states: States, n: int, support: str, k: int | None) -> list[int]:
    """Ids of position n; k: how many of each list."""
    if support == "full":
        return list(range(states.teacher_NV.shape[1]))
    teacher = ranked(states.teacher_NV[n:n + 1], states.stored_teacher)[0, :k].tolist()
    student = ranked(states.behaviour_NV[n:n + 1], states.stored_student)[0, :k].tolist()
    both, either = set(teacher) & set(student), set(teacher) | set(student)
    return sorted({"teacher_top_k": set(teacher), "student_top_k": set(student), "intersection": both, "union": either,
                   "symmetric_difference": either - both}[support])


def atoms(log_probs_V: Tensor, ids: list[int], outside: str) -> Tensor:
    """Log-masses of the coarsened distribution."""
    inside_A = log_probs_V[ids]
    if outside == "renormalise":
        return inside_A - inside_A.logsumexp(0) if ids else inside_A
    if outside == "tail_bucket":
        rest = torch.ones(len(log_probs_V), dtype=torch.bool)
        rest[ids] = False
        mass = log_probs_V[rest].exp().sum()
        bucket = mass.log() if mass > 0 else torch.full_like(mass, -torch.inf)
        return torch.cat([inside_A, bucket[None]])
    return inside_A


def compare(log_p_A: Tensor, log_q_A: Tensor, divergence: str, beta: float, alpha: float,
            stop_gradient: bool) -> Tensor:
    """The divergence of two lists of log-masses."""
    if divergence == "jsd" and beta == 0:
        divergence = "forward_kl"
    if divergence == "jsd" and beta == 1:
        divergence = "reverse_kl"
    if divergence == "reverse_kl":
        return kl(log_p_A, log_q_A, stop_gradient)
    if divergence == "forward_kl":
        return kl(log_q_A, log_p_A, stop_gradient)
    if divergence == "jsd":
        log_m_A = mixture(log_q_A, log_p_A, beta)
        return beta * kl(log_q_A, log_m_A, stop_gradient) + (1 - beta) * kl(log_p_A, log_m_A, stop_gradient)
    if divergence == "skewed":
        return kl(log_p_A, mixture(log_p_A, log_q_A, alpha), stop_gradient)
    raise KeyError(divergence)


def kl(log_a_A: Tensor, log_b_A: Tensor, stop_gradient: bool = False) -> Tensor:
    """sum a (log a - log b), with 0 log 0 = 0. Not clamped: of raw masses it may be negative."""
    there = log_a_A.detach() > -torch.inf
    log_a_A, log_b_A = log_a_A[there], log_b_A[there]
    log_ratio_A = log_a_A - log_b_A
    return (log_a_A.exp() * (log_ratio_A.detach() if stop_gradient else log_ratio_A)).sum()


def mixture(log_a_A: Tensor, log_b_A: Tensor, share: float) -> Tensor:
    """log(share a + (1 - share) b)."""
    return (share * log_a_A.exp() + (1 - share) * log_b_A.exp()).log()
