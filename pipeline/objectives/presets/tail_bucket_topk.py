"""Reverse KL on the teacher's top-K plus one bucket for the rest (Tail-aware top-k OPD, arXiv 2608.14728).

    L_n = sum_{u in S} p_u log(p_u / q_u) + (1 - P_S) log((1 - P_S) / (1 - Q_S)),   S = teacher's top-K
    full reverse KL = L_n + (1 - P_S) KL(p outside S || q outside S), so 0 <= L_n <= full.

logits_NK, lse_N, log_outside_N -> loss_N.
Not for: the speed of the support head. 1 - P_S has a gradient to every logit, a pass over the vocabulary.
"""

from pipeline.config.objectives import TailBucketTopK
from pipeline.objectives.dense import Dense
from pipeline.objectives.divergence import reverse_kl
from pipeline.objectives.outside import tail_bucket
from pipeline.objectives.support import TeacherTopK


def tail_bucket_topk(config: TailBucketTopK) -> Dense:
    return Dense("tail_bucket_topk", TeacherTopK(config.k), reverse_kl, tail_bucket)
