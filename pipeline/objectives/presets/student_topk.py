"""Reverse KL on the top-k of the student that wrote the rollouts (RETH, eq. 5; k 16).

    form = "loss":             L_n = sum_{u in S} p^_u log(p^_u / q^_u),   p^ = p / P_S,  q^ = q / Q_S
    form = "policy_gradient":  L_n = -sum_{u in S} min(rho_u A_u, clip(rho_u, 1 - clip, 1 + clip) A_u)
                               A_u = p_0(u) / P_0(S) * (log q_u - log p_0(u)),  rho_u = p_u / p_0(u)
    S = p_0's stored top-k

logits_Nk -> loss_N, the second also lse_N. The second is what RETH's code trains with: the advantage is p_0's, raw, and
detached, and PPO's clip stops an id whose p has left [1 - clip, 1 + clip] of p_0. It differs from the first at p = p_0
too: it has a target for the mass on S, and with k = 1 it still moves the student's argmax.
Not for: k = 1 as a loss (loss and gradient are 0); many steps per round, as S does not follow the student (watch
`topk_left`).
"""

from pipeline.config.objectives import StudentTopK as Config
from pipeline.objectives.dense import Dense
from pipeline.objectives.divergence import reverse_kl
from pipeline.objectives.outside import renormalise
from pipeline.objectives.policy_gradient import ListPolicyGradient
from pipeline.objectives.support import StudentTopK


def student_topk(config: Config) -> Dense | ListPolicyGradient:
    if config.form == "policy_gradient":
        return ListPolicyGradient("student_topk", StudentTopK(config.k), config.clip)
    return Dense("student_topk", StudentTopK(config.k), reverse_kl, renormalise)
