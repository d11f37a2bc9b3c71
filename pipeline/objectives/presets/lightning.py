"""Policy gradient on the sampled token whose advantage follows the student (LOPD).

    L_t = -sg(A_t) log p(y_t),   A_t = clip(log q(y_t) - log p(y_t), -10, 10);  q cached, p current, no ratio

logits_N1, lse_N -> loss_N. A_t shrinks as p nears q on what was sampled, so that one frozen set of rollouts can be
trained on for long: LOPD ran 150 steps (train.age_cap = 150; the default is that of sampled-token objectives, 4).
Not for: an unbiased gradient once p has left p_0, as no ratio corrects for y ~ p_0; another teacher than the one that
the student was fine-tuned on (LOPD: a bias stays).
"""

from pipeline.config.objectives import Lightning
from pipeline.objectives.policy_gradient import PolicyGradient


def lightning(config: Lightning) -> PolicyGradient:
    return PolicyGradient("lightning", advantage="current", clip=config.clip)
