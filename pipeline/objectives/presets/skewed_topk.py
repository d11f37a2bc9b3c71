"""Skewed reverse KL on the teacher's top-K plus one bucket for the rest (DistiLLM, the alpha-SRKL of section 3).

    L_n = sum_b p_b log(p_b / m_b),   m = alpha p + (1 - alpha) q,   b in S or the bucket,   S = teacher's top-K

logits_NK, lse_N, log_outside_N -> loss_N, between 0 and -log(alpha): mass where the teacher has none costs a bounded
price, and the gradient does not explode. alpha = 0 is `tail_bucket_topk`; DistiLLM takes .1.
Not for: driving out what the teacher never says. That bounded price is also all that is ever paid for it.
"""

from pipeline.config.objectives import SkewedTopK
from pipeline.objectives.dense import Dense
from pipeline.objectives.divergence import skewed
from pipeline.objectives.outside import tail_bucket
from pipeline.objectives.support import TeacherTopK


def skewed_topk(config: SkewedTopK) -> Dense:
    return Dense("skewed_topk", TeacherTopK(config.k), skewed(config.alpha), tail_bucket)
