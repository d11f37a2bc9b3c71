"""A negative control: the reverse KL cut to the teacher's top-K, raw. Do not train with it to get a better student.

    L_n = sum_{u in S} p_u log(p_u / q_u),   S = teacher's top-K; p and q as they are, adding up to P_S and Q_S

logits_NK, lse_N -> loss_N. No divergence: its minimum is p = q / e on S, so that the mass on S leaks until the student
collapses (REV: within about 100 steps). Its gradient is that of `stop_gradient_topk` on the same support plus grad P_S.
Not for: anything but showing this.
"""

from pipeline.config.objectives import TruncatedTopK
from pipeline.objectives.dense import Dense
from pipeline.objectives.divergence import reverse_kl
from pipeline.objectives.outside import truncate
from pipeline.objectives.support import TeacherTopK


def truncated_topk(config: TruncatedTopK) -> Dense:
    return Dense("truncated_topk", TeacherTopK(config.k), reverse_kl, truncate)
