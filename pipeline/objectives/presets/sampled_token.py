"""Policy gradient on the sampled token (Thinking Machines, On-Policy Distillation; RETH).

    L_t = -sg(A_t) log p(y_t),   A_t = sum_{t' >= t} gamma^(t' - t) (log q - log p_0)(y_t'),   gamma 0

logits_N1, lse_N -> loss_N. For y ~ p = p_0 (temperature 1, no top-p) and gamma 0 the expected gradient is that of the
full KL(p || q) at this state. Differentiating the log-ratio (k1) itself instead would have expected gradient 0, and
back-propagating through k3 would descend the forward KL.
Options: p in A_t may be the current student; a ratio to the sampled density (importance.py); a baseline and a clip of
A_t; gamma up to 1, the sequence level, whose gradient varies most and ends worst (REV, appendix E; advantage.py).
Not for: many updates per rollout batch (1 in RETH; degrades from 4 to 16) without a ratio, since A_t is p_0's; top-p
below 1 without knowing that the expectation above then is over the nucleus.
"""

from pipeline.config.objectives import SampledToken, SampledTokenMasked
from pipeline.objectives import importance
from pipeline.objectives.policy_gradient import PolicyGradient


def sampled_token(config: SampledToken | SampledTokenMasked) -> PolicyGradient:
    surrogate = importance.named(config.ratio, clip_low=config.clip_low, clip_high=config.clip_high,
                                 cap=config.ratio_cap)
    return PolicyGradient(config.type, config.gamma, config.advantage, surrogate, config.baseline,
                          config.advantage_clip)
