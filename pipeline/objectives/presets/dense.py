"""Any composition: a support, a divergence, what happens to the mass outside, and where gradients stop.

    L_n = D(p on the buckets of S_n, q on the same buckets)

logits_NS, and lse_N, log_outside_N unless renormalised -> loss_N; over all shared ids with support = "full".
Supports: support.py. Divergences: divergence.py. Outside mass: outside.py; "truncate" is a negative control.
Not for: K = 1 renormalised (loss and gradient are 0). Two keys that do not go together are refused.
"""

from pipeline.config.objectives import Dense as Config
from pipeline.objectives import divergence
from pipeline.objectives.dense import Dense, WholeVocabulary
from pipeline.objectives.outside import RULES
from pipeline.objectives.support import SELECTORS


def dense(config: Config) -> Dense | WholeVocabulary:
    compared = divergence.named(config.divergence, config.beta, config.alpha)
    if config.whole_vocabulary_teacher:
        return WholeVocabulary("dense", compared, config.whole_vocabulary_teacher, config.stop_gradient)
    outside = RULES[config.outside or "renormalise"]
    return Dense("dense", SELECTORS[config.support](config.k), compared, outside, config.stop_gradient)
