"""Reverse KL over all ids that both models share (RETH, eq. 4).

    L_n = sum_v p_v log(p_v / q_v) over the shared vocabulary

hidden_ND and both heads -> loss_N, in chunks of the vocabulary. q comes from the teacher's stored hidden states and its
head, or from the teacher itself.
Not for: caches without hidden states when no teacher fits beside the student; `tail_bucket_topk` is a lower bound of it
from the lists alone.
"""

from pipeline.config.objectives import FullVocabulary
from pipeline.objectives.dense import WholeVocabulary
from pipeline.objectives.divergence import reverse_kl


def full_vocabulary(config: FullVocabulary) -> WholeVocabulary:
    return WholeVocabulary("full_vocabulary", reverse_kl, config.teacher)
