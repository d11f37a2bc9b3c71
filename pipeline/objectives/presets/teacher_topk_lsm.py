"""Local support matching on the teacher's top-K (REV, teacher top-K local support matching; K 32).

    L_n = sum_{u in S} p^_u log(p^_u / q^_u),   p^ = p / P_S,  q^ = q / Q_S,  S = teacher's top-K
    dL_n/dz_u = p^_u (log(p^_u / q^_u) - L_n) for u in S, 0 outside: the normaliser cancels, the sum over S is 0.

logits_NK -> loss_N. The sampled token is not added to S.
Not for: K = 1 (loss and gradient are 0); a student whose mass on S is below about .85, since nothing here has a
target for P_S, which drifts as a side effect (watch `student_mass`).
"""

from pipeline.config.objectives import TeacherTopKLsm
from pipeline.objectives.dense import Dense
from pipeline.objectives.divergence import reverse_kl
from pipeline.objectives.outside import renormalise
from pipeline.objectives.support import TeacherTopK


def teacher_topk_lsm(config: TeacherTopKLsm) -> Dense:
    return Dense("teacher_topk_lsm", TeacherTopK(config.k), reverse_kl, renormalise)
