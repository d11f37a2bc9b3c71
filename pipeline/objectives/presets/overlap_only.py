"""Reverse KL on the ids that both models' top-k hold (RETH, ablation).

    L_n = sum_{u in S} p^_u log(p^_u / q^_u),   p^ = p / P_S,  q^ = q / Q_S,   S = T & S_0
    T the teacher's stored top-K, S_0 the stored top-k of p_0

logits_Nk -> loss_N; 0, without a gradient, where S has fewer than two ids.
Not for: a student far from its teacher, whose lists share little.
"""

from pipeline.config.objectives import OverlapOnly
from pipeline.objectives.dense import Dense
from pipeline.objectives.divergence import reverse_kl
from pipeline.objectives.outside import renormalise
from pipeline.objectives.support import Intersection


def overlap_only(config: OverlapOnly) -> Dense:
    return Dense("overlap_only", Intersection(), reverse_kl, renormalise)
