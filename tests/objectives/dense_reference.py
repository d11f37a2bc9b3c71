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
        rollout_N=torch.zeros(count, dtype=torch.long))


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


def reference(name, teacher_V, before_V, now_V, support, token):
    """One position's loss; `support` is a list of ids."""
    p, q, p_0 = now_V.softmax(0), teacher_V.softmax(0), before_V.softmax(0)
    if name.startswith("sampled_token"):
        advantage = (q[token] / p_0[token]).log().item()
        return -advantage * p[token].log()
    p_S, q_S = [p[u] for u in support], [q[u] for u in support]
    if name == "teacher_topk_lsm":
        return kl([x / sum(p_S) for x in p_S], [x / sum(q_S) for x in q_S])
    assert name == "tail_bucket_topk"
    rest = [v for v in range(len(p)) if v not in set(support)]
    outside = [(p[rest].sum(), q[rest].sum())] if rest else []
    return kl(p_S + [a for a, _ in outside], q_S + [b for _, b in outside])
