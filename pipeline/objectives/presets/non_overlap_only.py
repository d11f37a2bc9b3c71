"""Reverse KL on the ids that one model's top-k holds alone (RETH, ablation).

    L_n = sum_{u in S} p^_u log(p^_u / q^_u),   p^ = p / P_S,  q^ = q / Q_S,   S = T ^ S_0 (in one list, not in both)
    T the teacher's stored top-K, S_0 the stored top-k of p_0

logits_N(K+k) -> loss_N; 0, without a gradient, where S has fewer than two ids.
RETH's own code leaves the masses as they are: that is `dense` with symmetric_difference, truncate and stop_gradient.
Not for: training. It is the other half of an ablation: the overlap carries nearly all of the signal.
"""

from pipeline.config.objectives import NonOverlapOnly
from pipeline.objectives.dense import Dense
from pipeline.objectives.divergence import reverse_kl
from pipeline.objectives.outside import renormalise
from pipeline.objectives.support import SymmetricDifference


def non_overlap_only(config: NonOverlapOnly) -> Dense:
    return Dense("non_overlap_only", SymmetricDifference(), reverse_kl, renormalise)
