"""Slow and obvious: every objective from whole distributions in float64, one position at a time, and cached batches
made from whole distributions. Shares nothing with pipeline/objectives but the batch it fills.

Shapes: N positions, V vocabulary, K support.
"""

import torch

from pipeline.objectives import StudentLogits, TokenBatch


def states(positions, vocabulary, *, seed=0, ties=False):
    """(teacher's, behaviour student's, current student's) logits, float64; with `ties` only a few distinct values."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: 2 * torch.randn(positions, vocabulary, generator=generator, dtype=torch.float64)
    teacher, before = draw(), draw()
    now = before + draw() / 4
    return tuple((2 * z).round() / 2 for z in (teacher, before, now)) if ties else (teacher, before, now)


def cached(teacher_NV, before_NV, *, k, student_k=4, sampled_N=None, weight_N=None):
    """The TokenBatch a scorer would have stored, not rounded to a grid."""
    count, vocabulary = teacher_NV.shape
    log_q, log_p = teacher_NV.log_softmax(1), before_NV.log_softmax(1)
    sampled = torch.arange(count) * 7 % vocabulary if sampled_N is None else sampled_N
    teacher_top, student_top = log_q.topk(k), log_p.topk(min(student_k, vocabulary))
    outside = torch.ones_like(log_q, dtype=torch.bool).scatter(1, teacher_top.indices, False)
    tail = lambda log: torch.stack([row[keep].logsumexp(0) for row, keep in zip(log, outside)])
    at = lambda log: log[torch.arange(count), sampled]
    return TokenBatch(
        token_ids_N=sampled, teacher_log_prob_N=at(log_q), student_log_prob_N=at(log_p),
        sampling_log_prob_N=at(log_p) + 0.3,
        teacher_log_tail_N=tail(log_q), student_log_tail_N=tail(log_p),
        teacher_topk_ids_NK=teacher_top.indices, teacher_topk_log_probs_NK=teacher_top.values,
        student_topk_ids_Nk=student_top.indices, student_topk_log_probs_Nk=student_top.values,
        teacher_at_student_Nk=log_q.gather(1, student_top.indices),
        weight_N=torch.ones(count, dtype=log_q.dtype) if weight_N is None else weight_N,
        rollout_N=torch.zeros(count, dtype=torch.long), position_N=torch.arange(count))


def gathered(now_NV, ids_NS, objective):
    """StudentLogits from whole rows of logits."""
    logits = now_NV.gather(1, ids_NS)
    if not objective.needs_log_normaliser:
        return StudentLogits(logits)
    outside = torch.ones_like(now_NV, dtype=torch.bool).scatter(1, ids_NS, False)
    return StudentLogits(logits, now_NV.logsumexp(1), now_NV.masked_fill(~outside, -torch.inf).logsumexp(1))


def product_loss(objective, batch, now_NV):
    """loss_N of the code under test, differentiable in now_NV."""
    return objective.loss(batch, gathered(now_NV, objective.support(batch), objective))


def kl(p, q):
    """sum p log(p / q) over two plain vectors."""
    return sum(a * (a.log() - b.log()) for a, b in zip(p, q) if a > 0)


def full_reverse_kl(teacher_V, now_V):
    p, log_q = now_V.softmax(0), teacher_V.log_softmax(0)
    return (p * (p.log() - log_q)).sum()


def support_of(name, teacher_ids, student_ids):
    """The ids of a named support as a list, from both stored lists."""
    both = [v for v in teacher_ids if v in set(student_ids)]
    return {"teacher_top_k": teacher_ids, "student_top_k": student_ids, "intersection": both,
            "union": teacher_ids + [v for v in student_ids if v not in set(both)],
            "symmetric_difference": [v for v in teacher_ids + student_ids if v not in set(both)]}[name]


COMPOSED = {  # support, divergence, outside, stop-gradient
    "teacher_topk_lsm": ("teacher_top_k", "reverse_kl", "renormalise", False),
    "student_topk": ("student_top_k", "reverse_kl", "renormalise", False),
    "union_topk": ("union", "reverse_kl", "renormalise", False),
    "overlap_only": ("intersection", "reverse_kl", "renormalise", False),
    "non_overlap_only": ("symmetric_difference", "reverse_kl", "renormalise", False),
    "tail_bucket_topk": ("teacher_top_k", "reverse_kl", "tail_bucket", False),
    "truncated_topk": ("teacher_top_k", "reverse_kl", "truncate", False),
    "forward_kl_topk": ("teacher_top_k", "forward_kl", "tail_bucket", False),
    "gkd": ("teacher_top_k", "jsd", "tail_bucket", False),
    "skewed_topk": ("teacher_top_k", "skewed", "tail_bucket", False),
}


def composition(config):
    """(support, divergence, outside, stop-gradient) that a config stands for."""
    if config.type == "dense":
        return config.support, config.divergence, config.outside or "renormalise", config.stop_gradient
    if config.type == "stop_gradient_topk":
        return config.support, "reverse_kl", "renormalise" if config.support == "intersection" else "truncate", True
    return COMPOSED[config.type]


def reference(config, teacher_V, before_V, now_V, teacher_ids, student_ids, token):
    """One position's loss; the stored lists and the token are plain ids. Gamma is 0 and no ratio is taken."""
    p, q, p_0 = now_V.softmax(0), teacher_V.softmax(0), before_V.softmax(0)
    if config.type.startswith("sampled_token"):
        return -(q[token] / p_0[token]).log().item() * p[token].log()
    if config.type == "lightning":
        return -(q[token] / p[token]).log().clamp(-config.clip, config.clip).item() * p[token].log()
    support, divergence, outside, stop = composition(config)
    most = 20 if config.type == "stop_gradient_topk" else None
    ids = support_of(support, teacher_ids[:most], student_ids[:most])
    p_B, q_B = [p[u] for u in ids], [q[u] for u in ids]
    if outside == "renormalise":
        p_B, q_B = [x / sum(p_B) for x in p_B], [x / sum(q_B) for x in q_B]
    if outside == "tail_bucket":
        rest = torch.ones(len(p), dtype=torch.bool).index_fill(0, torch.tensor(ids, dtype=torch.long), False)
        p_B, q_B = (p_B + [p[rest].sum()], q_B + [q[rest].sum()]) if rest.any() else (p_B, q_B)
    if stop:
        return sum(a * ((a / b).log().detach()) for a, b in zip(p_B, q_B))
    beta, alpha = getattr(config, "beta", None) or 0.5, getattr(config, "alpha", None) or 0.1
    mixed = lambda share: [share * a + (1 - share) * b for a, b in zip(p_B, q_B)]
    return {"reverse_kl": lambda: kl(p_B, q_B), "forward_kl": lambda: kl(q_B, p_B),
            "jsd": lambda: beta * kl(q_B, mixed(1 - beta)) + (1 - beta) * kl(p_B, mixed(1 - beta)),
            "skewed": lambda: kl(p_B, mixed(alpha))}[divergence]()
