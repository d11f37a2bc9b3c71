"""Reverse KL on what either model's top-k holds, both sides renormalised.

    L_n = sum_{u in S} p^_u log(p^_u / q^_u),   p^ = p / P_S,  q^ = q / Q_S,   S = T_k | S_k
    T_k the teacher's top-k, S_k the top-k of p_0

logits_N(K+k) -> loss_N, exact from the cache: the scorer gathers the teacher at p_0's list. What p_0 likes and the
teacher does not is in S, so it is pushed down, where `teacher_topk_lsm` does not see it.
Not for: a target for P_S either; many steps per round, as S_k does not follow the student (watch `topk_left`).
"""

from pipeline.config.objectives import UnionTopK
from pipeline.objectives.dense import Dense
from pipeline.objectives.divergence import reverse_kl
from pipeline.objectives.outside import renormalise
from pipeline.objectives.support import Union


def union_topk(config: UnionTopK) -> Dense:
    return Dense("union_topk", Union(config.k), reverse_kl, renormalise)
