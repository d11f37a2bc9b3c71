"""Statistics of rows of logits: the numbers of `tokens` that need the whole vocabulary.

Rows are handled in small blocks that stay in cache: each pass over a block then costs a tenth of what it costs over
a chunk of the head. The top-K is exact: among blocks of 128 columns, the K with the largest maxima hold it, so K * 128
candidates are searched instead of V. Ties go to the lower id, on every device, because keys are unique integers.

Shapes: R rows of a block, V shared vocabulary, W = V padded to whole column blocks, C column blocks, K entries of a
list, J ids asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.distinct import distinct_writes

COLUMNS = 128
"""Columns of a block: 1,187 maxima at V = 151,936."""
LOWEST = torch.finfo(torch.float32).min / 2
"""Padding that no sum sees, in binary logs too; -inf would make 0 * -inf."""
SMALL_TAIL = 1e-30
"""Below this a sum of float32 probabilities has lost digits to underflow, and the tail is summed again in logs."""
LOG2_E, LN_2 = math.log2(math.e), math.log(2)
_LAST_ID = 2**31 - 1


@dataclass
class Rows:
    """What the softmax p over the vocabulary says of a few rows."""

    log_probs_RJ: Tensor
    """At the ids that were asked."""
    entropy_R: Tensor
    """H = -sum_v p(v) log p(v)"""
    log_tail_R: Tensor
    """log sum_{v not listed} p(v): the tail itself is summed, never 1 - mass. -inf if the listed ids are all."""


def softmax_rows_(logits_RW: Tensor, asked_RJ: Tensor, largest_R1: Tensor, listed_RK: Tensor, vocabulary: int,
                  scratch_RW: Tensor) -> Rows:
    """`Rows` of a block of padded logits, which is used up; `largest_R1` are the ids of the rows' maxima.

    With w = (z - max z) / ln 2, up to a rounding that is the same in all of a row, and S = sum_v 2^w(v):

        log p = z - max z - (log S - ln 2 w(largest))        H = log S - ln 2 sum_v 2^w(v) w(v) / S

    Powers of two because exp costs 4 times as much on CPUs that are not Intel's. The tail is S summed again without the
    listed ids, so that nothing but the tail depends on them.
    """
    largest_logit_R1, shifted_RJ = logits_RW.gather(1, largest_R1), logits_RW.gather(1, asked_RJ)
    shifted_RJ -= largest_logit_R1
    binary_RW = torch.add(largest_logit_R1 * -LOG2_E, logits_RW, alpha=LOG2_E, out=logits_RW)
    power_RW = torch.exp2(binary_RW, out=scratch_RW)
    log_sum_R1, log_largest_R1 = power_RW.sum(1, keepdim=True).log_(), LN_2 * binary_RW.gather(1, largest_R1)
    power_RK = power_RW.gather(1, listed_RK)
    tail_R = power_RW.scatter_(1, listed_RK, 0.0).sum(1)
    log_tail_R = _log_tail(tail_R, binary_RW[:, :vocabulary], listed_RK) - log_sum_R1[:, 0]
    with distinct_writes(power_RW):
        power_RW.scatter_(1, listed_RK, power_RK)
    moment_R1 = binary_RW.mul_(power_RW).sum(1, keepdim=True)
    entropy_R1 = log_sum_R1 - LN_2 * moment_R1 * torch.exp(-log_sum_R1)
    return Rows(shifted_RJ.sub_((log_sum_R1 - log_largest_R1).clamp_(min=0)), entropy_R1[:, 0], log_tail_R)


def _log_tail(tail_R: Tensor, binary_RV: Tensor, listed_RK: Tensor) -> Tensor:
    """log of the sum of the powers that are not listed."""
    log_tail_R, small_R = tail_R.log(), tail_R < SMALL_TAIL
    if tail_R.is_cuda:  # asking whether there is one would wait for the device
        return torch.where(small_R, _summed_in_logs(binary_RV, listed_RK), log_tail_R)
    if small_R.any():
        log_tail_R[small_R] = _summed_in_logs(binary_RV[small_R], listed_RK[small_R])
    return log_tail_R


def _summed_in_logs(binary_RV: Tensor, listed_RK: Tensor) -> Tensor:
    return binary_RV.scatter(1, listed_RK, -torch.inf).mul_(LN_2).logsumexp(1)


def rank(logits_RW: Tensor, ids_R1: Tensor, best_RK: Tensor, scratch_RW: Tensor) -> Tensor:
    """1 + the number of strictly larger logits; `best_RK` is `top_k`, which holds them all if it reaches that far."""
    own_R1 = logits_RW.gather(1, ids_R1)
    if not own_R1.is_cuda:  # asking would wait for the device; tokens of the student are mostly among the best
        best = logits_RW.gather(1, best_RK)
        if (own_R1 >= best[:, -1:]).all():
            return 1 + (best > own_R1).sum(1).int()
    larger_RW = torch.gt(logits_RW, own_R1, out=scratch_RW)  # float: a sum of bools is 4x slower
    return 1 + larger_RW.sum(1).int()


def top_k(logits_RW: Tensor, k: int) -> Tensor:
    """Ids of the k largest logits, descending, ties by lower id.

    Exact: an element outside the k best column blocks is preceded, in this very order, by one element of each.
    """
    blocks_RCB = logits_RW.unflatten(1, (-1, COLUMNS))
    best_RK = _best(blocks_RCB.amax(2), torch.arange(blocks_RCB.shape[1], device=logits_RW.device), k)
    candidates = blocks_RCB[torch.arange(len(best_RK), device=best_RK.device)[:, None], best_RK]
    ids = best_RK[:, :, None] * COLUMNS + torch.arange(COLUMNS, device=best_RK.device)
    return _best(candidates.flatten(1), ids.flatten(1), k)


def _best(values: Tensor, ids: Tensor, k: int) -> Tensor:
    """The ids of the k largest values, descending, ties by lower id; all ids if there are fewer."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes one zero of two
    ordered = bits ^ ((bits >> 31) & _LAST_ID)  # as integers in the order of the floats
    keys = (ordered.long() << 32) + (_LAST_ID - ids)
    return _LAST_ID - (keys.topk(min(k, keys.shape[1]), dim=1).values & 0xFFFFFFFF)
