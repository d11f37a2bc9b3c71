"""Generalised Jensen-Shannon divergence (GKD, section 2), with m = beta q + (1 - beta) p.

    L_n = beta KL(q || m) + (1 - beta) KL(p || m)
    beta = 0: KL(q || p), the limit of L / beta;   beta = 1: KL(p || q), the limit of L / (1 - beta)

on the teacher's top-K plus one bucket for the rest: logits_NK, lse_N, log_outside_N -> loss_N; or over all shared ids.
Not for: comparing losses across beta. The scale jumps at both ends: beta = .01 is a hundredth of beta = 0.
"""

from pipeline.config.objectives import Gkd
from pipeline.objectives.dense import Dense, WholeVocabulary
from pipeline.objectives.divergence import jsd
from pipeline.objectives.outside import tail_bucket
from pipeline.objectives.support import TeacherTopK


def gkd(config: Gkd) -> Dense | WholeVocabulary:
    if config.whole_vocabulary_teacher:
        return WholeVocabulary("gkd", jsd(config.beta), config.whole_vocabulary_teacher)
    return Dense("gkd", TeacherTopK(config.k), jsd(config.beta), tail_bucket)
