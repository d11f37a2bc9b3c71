"""Forward KL on the teacher's top-K plus one bucket for the rest (ASYNC: robust to stale rollouts).

    L_n = sum_{u in S} q_u log(q_u / p_u) + (1 - Q_S) log((1 - Q_S) / (1 - P_S)),   S = teacher's top-K
    dL_n/dz_u = p_u - q_u on S, and p_u - (1 - Q_S) p_u / (1 - P_S) outside

logits_NK, lse_N, log_outside_N -> loss_N. Raw on S, without the bucket, its minimum would be p = q / Q_S.
Not for: a student too small for all that the teacher does. It covers every mode, and also those it cannot play.
"""

from pipeline.config.objectives import ForwardKLTopK
from pipeline.objectives.dense import Dense
from pipeline.objectives.divergence import forward_kl
from pipeline.objectives.outside import tail_bucket
from pipeline.objectives.support import TeacherTopK


def forward_kl_topk(config: ForwardKLTopK) -> Dense:
    return Dense("forward_kl_topk", TeacherTopK(config.k), forward_kl, tail_bucket)
