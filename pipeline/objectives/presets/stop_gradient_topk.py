"""Reverse KL whose log-ratio is a constant: the student is pulled by it, not through it (MANY, eq. 12; K 20).

    support = "intersection" (MANY's default):  L_n = sum_{u in S} p^_u (sg(log p^_u) - log q^_u),   S = T_k & S_k
    support = "teacher_top_k":                  L_n = sum_{u in S} p_u (sg(log p_u) - log q_u),      S = T_k
    p^ = p / P_S,  q^ = q / Q_S,  T_k the teacher's top-k,  S_k the top-k of p_0

logits_NS -> loss_N, the second also lse_N. On a renormalised support the stop changes no gradient, since the part that
it stops sums to 0. On the raw support it takes away grad P_S, which makes `truncated_topk` leak: here the mass and the
shape on S converge to the teacher's.
Not for: reading the second form's loss as a divergence. It can be negative.
"""

from pipeline.config.objectives import StopGradientTopK
from pipeline.objectives.dense import Dense
from pipeline.objectives.divergence import reverse_kl
from pipeline.objectives.outside import renormalise, truncate
from pipeline.objectives.support import Intersection, TeacherTopK

MANYS_K = 20


def stop_gradient_topk(config: StopGradientTopK) -> Dense:
    k, or_less = (MANYS_K, True) if config.k is None else (config.k, False)
    if config.support == "intersection":
        return Dense("stop_gradient_topk", Intersection(k, or_less), reverse_kl, renormalise, stop_gradient=True)
    return Dense("stop_gradient_topk", TeacherTopK(k, or_less), reverse_kl, truncate, stop_gradient=True)
