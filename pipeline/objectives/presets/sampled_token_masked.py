"""`sampled_token` on the positions that a special-token mask leaves (REV: 36.4 -> 40.7 average over sampled_token).

    L_t = -w_t sg(A_t) log p(y_t),   w_t = 0 on the first occurrence of a listed or detected token

logits_N1, lse_N -> loss_N. The mask is a stage of the round and acts through the weights: a masked token is in no sum
of A_t either. The config is refused without one.
Not for: what `sampled_token` is not for.
"""

from pipeline.config.objectives import SampledTokenMasked
from pipeline.objectives.policy_gradient import PolicyGradient
from pipeline.objectives.presets.sampled_token import sampled_token


def sampled_token_masked(config: SampledTokenMasked) -> PolicyGradient:
    return sampled_token(config)
