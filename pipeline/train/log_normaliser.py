"""log sum_v exp(z_v) over the vocabulary, in chunks of it, with its exact gradient.

    lse_n = log sum_{v < vocab, v not in S_n} exp(z_nv),   d lse_n / d z_nv = exp(z_nv - lse_n)

Never holds [N, V]: the backward pass computes every chunk of logits again. The weight's gradient goes straight into
weight.grad (in_place.py). Under torch.no_grad() it is the plain sum, for the positions that are only logged.

Shapes: N positions, D model width, V vocabulary, C a chunk of it, P pairs of an excluded support.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.train.in_place import add_product_, gradient_buffer
from pipeline.train.squash import compute_dtype, slope, squash
from pipeline.train.support_index import SupportIndex

CHUNK_LOGITS = {"cpu": 2**19, "cuda": 2**26}
"""Logits held at a time: 2 MB in float32 on a CPU, 256 MB on a GPU."""
CHUNK_IDS = {"cpu": (128, 2048), "cuda": (128, 2**16)}
"""Least and most ids at a time. On a CPU 32 logged positions take 125 ms in chunks of 2048 ids (70 % of what large
products reach), 140 ms in chunks of 8192, whose logits have left the L2 cache."""


def log_normaliser(hidden_ND: Tensor, weight_VD: Tensor, *, bias: Tensor | None = None, scale: float = 1.0,
                   softcap: float | None = None, vocab: int | None = None,
                   exclude: SupportIndex | Tensor | None = None) -> Tensor:
    """lse_N over the first `vocab` ids (all if None), without those of each row's `exclude`; -inf if none is left."""
    index = SupportIndex.build(exclude) if isinstance(exclude, Tensor) else exclude
    sweep = Sweep(len(weight_VD) if vocab is None else vocab, scale, softcap, compute_dtype(hidden_ND, weight_VD))
    return _LogNormaliser.apply(hidden_ND, weight_VD, bias, sweep, index)


@dataclass(frozen=True)
class Sweep:
    """One pass over the vocabulary: how it is cut, and how logits are made."""

    vocab: int
    scale: float
    softcap: float | None
    dtype: torch.dtype

    def spans(self, hidden_ND: Tensor) -> list[tuple[int, int]]:
        device = hidden_ND.device.type
        least, most = CHUNK_IDS[device]
        width = max(least, min(most, CHUNK_LOGITS[device] // max(1, len(hidden_ND))))
        return [(start, min(start + width, self.vocab)) for start in range(0, self.vocab, width)]

    def logits(self, hidden_ND: Tensor, weight_CD: Tensor, bias_C: Tensor | None) -> Tensor:
        raw_NC = hidden_ND @ weight_CD.t()
        return squash(raw_NC if bias_C is None else raw_NC + bias_C.to(self.dtype), self.scale, self.softcap)


class _Excluded:
    """Entries of each chunk that belong to their row's support."""

    def __init__(self, index: SupportIndex | None, spans: list[tuple[int, int]]):
        if index is None:
            self._entries = {}
            return
        ids_P, rows_P = index.ids_NS.flatten()[index.order_P], index.rows_P
        edges = torch.tensor([start for start, _ in spans] + [spans[-1][1]], device=ids_P.device)
        cuts = torch.searchsorted(ids_P, edges).tolist()
        self._entries = {span: (rows_P[first:last], ids_P[first:last] - span[0])
                         for span, first, last in zip(spans, cuts, cuts[1:])}

    def fill_(self, chunk_NC: Tensor, span: tuple[int, int], value: float) -> Tensor:
        if span in self._entries:
            chunk_NC[self._entries[span]] = value
        return chunk_NC


class _LogNormaliser(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, sweep, index):
        spans = sweep.spans(hidden_ND)
        excluded = _Excluded(index, spans)
        rows_ND = hidden_ND.to(sweep.dtype)
        lse_N = rows_ND.new_full((len(rows_ND),), -torch.inf)
        for start, end in spans:
            logits_NC = sweep.logits(rows_ND, weight_VD[start:end].to(sweep.dtype), _part(bias_V, start, end))
            excluded.fill_(logits_NC, (start, end), -torch.inf)
            lse_N = torch.logaddexp(lse_N, logits_NC.logsumexp(1))
        ctx.save_for_backward(hidden_ND, lse_N)
        ctx.weight_VD, ctx.bias_V, ctx.sweep, ctx.excluded = weight_VD, bias_V, sweep, excluded
        return lse_N

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_N):
        (hidden_ND, lse_N), sweep = ctx.saved_tensors, ctx.sweep
        rows_ND = hidden_ND.to(sweep.dtype)
        grad_rows_ND = torch.zeros_like(rows_ND)
        for start, end in sweep.spans(rows_ND):
            weight_CD = ctx.weight_VD[start:end].to(sweep.dtype)
            logits_NC = sweep.logits(rows_ND, weight_CD, _part(ctx.bias_V, start, end))
            grad_NC = (logits_NC - lse_N[:, None]).exp_().mul_(grad_N[:, None])
            grad_NC = ctx.excluded.fill_(grad_NC.mul_(slope(logits_NC, sweep.scale, sweep.softcap)), (start, end), 0.0)
            if ctx.needs_input_grad[0]:
                grad_rows_ND.addmm_(grad_NC, weight_CD)
            if ctx.needs_input_grad[1]:
                add_product_(gradient_buffer(ctx.weight_VD)[start:end], grad_NC, rows_ND)
            if ctx.needs_input_grad[2]:
                gradient_buffer(ctx.bias_V)[start:end] += grad_NC.sum(0)
        return grad_rows_ND.to(hidden_ND.dtype), None, None, None, None


def _part(bias_V: Tensor | None, start: int, end: int) -> Tensor | None:
    return None if bias_V is None else bias_V[start:end]
