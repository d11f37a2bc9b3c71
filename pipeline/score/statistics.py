"""Statistics of rows of logits: the numbers of `tokens` that need the whole vocabulary.

Rows are handled in small blocks that stay in cache: each pass over a block then costs a tenth of what it costs over
a chunk of the head. The top-K is exact: among blocks of 128 columns, the K with the largest maxima hold it, so K * 128
candidates are searched instead of V. Ties go to the lower id, on every device, because keys are unique integers.

Shapes: R rows of a block, V shared vocabulary, W = V padded to whole column blocks, C column blocks, K entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COLUMNS = 128
"""Columns of a block: 1,187 maxima at V = 151,936."""
LOWEST = torch.finfo(torch.float32).min
"""Padding that no sum sees; -inf would make 0 * -inf."""
SMALL_TAIL = 1e-30
"""Below this a sum of float32 probabilities has lost digits to underflow, and the tail is summed again in logs."""
_LAST_ID = 2**31 - 1


@dataclass
class Rows:
    """Softmax over the vocabulary of a few rows. log p(v) = shifted(v) - log_sum."""

    shifted_RW: Tensor
    """z - max z"""
    probs_RW: Tensor
    """p; `log_mass_outside` uses it up"""
    log_sum_R1: Tensor
    vocabulary: int

    def log_probs_at(self, ids_RK: Tensor) -> Tensor:
        return self.shifted_RW.gather(1, ids_RK) - self.log_sum_R1

    def entropy(self) -> Tensor:
        """H = -sum_v p(v) log p(v) = log_sum - sum_v p(v) (z(v) - max z)"""
        return self.log_sum_R1[:, 0] - torch.linalg.vecdot(self.probs_RW, self.shifted_RW)

    def log_mass_outside(self, ids_RK: Tensor) -> Tensor:
        """log sum_{v not in ids} p(v): the tail itself is summed, never 1 - mass. -inf if ids are all there is."""
        tail_R = self.probs_RW.scatter_(1, ids_RK, 0.0).sum(1)
        log_tail_R = tail_R.log()
        small_R = tail_R < SMALL_TAIL
        if tail_R.is_cuda:  # asking whether there is one would wait for the device
            return torch.where(small_R, self._summed_in_logs(slice(None), ids_RK), log_tail_R)
        if small_R.any():
            log_tail_R[small_R] = self._summed_in_logs(small_R, ids_RK)
        return log_tail_R

    def _summed_in_logs(self, some_R: Tensor | slice, ids_RK: Tensor) -> Tensor:
        outside = self.shifted_RW[some_R, :self.vocabulary].scatter(1, ids_RK[some_R], -torch.inf)
        return outside.logsumexp(1) - self.log_sum_R1[some_R, 0]


def softmax_rows_(logits_RW: Tensor, largest_R1: Tensor, vocabulary: int, scratch_RW: Tensor) -> Rows:
    """Turn a block of padded logits into `Rows`, in place. `largest_R1` are the ids of the rows' maxima."""
    logits_RW.sub_(logits_RW.gather(1, largest_R1))
    probs_RW = torch.softmax(logits_RW, dim=1, out=scratch_RW)
    return Rows(logits_RW, probs_RW, -probs_RW.gather(1, largest_R1).log().clamp(max=0), vocabulary)


def rank(logits_RW: Tensor, ids_R1: Tensor, scratch_RW: Tensor) -> Tensor:
    """1 + the number of strictly larger logits."""
    larger_RW = torch.gt(logits_RW, logits_RW.gather(1, ids_R1), out=scratch_RW)  # float: a sum of bools is 4x slower
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
