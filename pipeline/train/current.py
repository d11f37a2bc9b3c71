"""What the student that is being trained says now, at logged positions: one pass over the vocabulary, no gradient.

Shapes: N positions, D model width, V vocabulary, C a chunk of it, K teacher and k student entries, S ids asked for.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pipeline.objectives import TokenBatch
from pipeline.train.log_normaliser import Sweep
from pipeline.train.squash import compute_dtype
from pipeline.train.student import Student
from pipeline.train.support.head import support_logits


@dataclass(frozen=True)
class Current:
    """p_now at N positions; log-probs over the ids that both models share."""

    log_prob_N: Tensor
    """Of the sampled token."""
    at_teacher_NK: Tensor
    """At the teacher's stored top-K."""
    at_student_Nk: Tensor
    """At the stored top-k of p_0, which wrote the rollouts."""
    entropy_N: Tensor
    """Over the whole vocabulary, nats."""
    topk_ids_Nk: Tensor
    """p_now's own top-k: as many as are stored of p_0."""


@torch.no_grad()
def current(student: Student, hidden_ND: Tensor, batch: TokenBatch) -> Current:
    """What `student` says at the positions of `batch`, whose hidden states before the head are `hidden_ND`."""
    head, options = student.head.weight_VD, student.head_options()
    k_teacher, k_student = batch.teacher_topk_ids_NK.shape[1], batch.student_topk_ids_Nk.shape[1]
    ids_NS = torch.cat([batch.token_ids_N[:, None], batch.teacher_topk_ids_NK, batch.student_topk_ids_Nk], dim=1)
    whole = summary(hidden_ND, head, k_student, vocab=student.vocabulary, **options)
    log_probs_NS = support_logits(hidden_ND, head, ids_NS, **options) - whole.lse_N[:, None]
    sampled, at_teacher_NK, at_student_Nk = log_probs_NS.split([1, k_teacher, k_student], dim=1)
    return Current(sampled[:, 0], at_teacher_NK, at_student_Nk, whole.entropy_N, whole.topk_ids_Nk)


@dataclass(frozen=True)
class Summary:
    """Of rows of logits that were never held whole."""

    lse_N: Tensor
    entropy_N: Tensor
    topk_ids_Nk: Tensor


def summary(hidden_ND: Tensor, weight_VD: Tensor, k: int, *, bias: Tensor | None = None, scale: float = 1.0,
            softcap: float | None = None, vocab: int | None = None) -> Summary:
    """logsumexp, entropy and the ids of the k largest logits over the first `vocab` ids (all if None).

    H = lse - sum_v p_v z_v; the sum is kept relative to the largest logit so far, and scaled when that grows.
    """
    sweep = Sweep(len(weight_VD) if vocab is None else vocab, scale, softcap, compute_dtype(hidden_ND, weight_VD))
    parts = [_swept(hidden_ND[rows], weight_VD, k, bias, sweep) for rows in sweep.blocks(hidden_ND)]
    return Summary(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Summary)))


def _swept(hidden_ND: Tensor, weight_VD: Tensor, k: int, bias: Tensor | None, sweep: Sweep) -> Summary:
    rows_ND = hidden_ND.to(sweep.dtype)
    largest_N1 = rows_ND.new_full((len(rows_ND), 1), -torch.inf)
    mass_N, weighted_N = rows_ND.new_zeros(len(rows_ND)), rows_ND.new_zeros(len(rows_ND))
    best_Nk, ids_Nk = rows_ND.new_empty(len(rows_ND), 0), torch.empty(len(rows_ND), 0, dtype=torch.long,
                                                                       device=rows_ND.device)
    for start, end in sweep.spans(rows_ND):
        bias_C = None if bias is None else bias[start:end]
        logits_NC = sweep.logits(rows_ND, weight_VD[start:end].to(sweep.dtype), bias_C)
        best_Nk, ids_Nk = _merge(best_Nk, ids_Nk, logits_NC, start, k)
        grown_N1 = torch.maximum(largest_N1, logits_NC.amax(1, keepdim=True))
        shrink_N = (largest_N1 - grown_N1).exp()[:, 0]
        exp_NC = (logits_NC - grown_N1).exp()
        mass_N = mass_N * shrink_N + exp_NC.sum(1)
        weighted_N = weighted_N * shrink_N + _dot(exp_NC, logits_NC)
        largest_N1 = grown_N1
    lse_N = largest_N1[:, 0] + mass_N.log()
    return Summary(lse_N, lse_N - weighted_N / mass_N, ids_Nk)


def _dot(a_NC: Tensor, b_NC: Tensor) -> Tensor:
    """Row by row. On a GPU vecdot is a matrix product, which TF32 would round to 11 bits."""
    return torch.linalg.vecdot(a_NC, b_NC) if a_NC.device.type == "cpu" else (a_NC * b_NC).sum(1)


def _merge(best_Nk: Tensor, ids_Nk: Tensor, logits_NC: Tensor, start: int, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of those so far and of a chunk that begins with id `start`."""
    chunk = logits_NC.topk(min(k, logits_NC.shape[1]), dim=1)
    values = torch.cat([best_Nk, chunk.values], dim=1)
    ids = torch.cat([ids_Nk, chunk.indices + start], dim=1)
    best = values.topk(min(k, values.shape[1]), dim=1)
    return best.values, ids.gather(1, best.indices)
