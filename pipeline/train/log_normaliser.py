"""log sum_v exp(z_v) over the vocabulary, in chunks of it, with its exact gradient.

    lse_n = log sum_{v < vocab, v not in S_n} exp(z_nv),   d lse_n / d z_nv = exp(z_nv - lse_n)

Never holds [N, V]: the backward pass computes every chunk of logits again. The weight's gradient goes straight into
weight.grad, or with `in_place=False` to autograd (in_place.py). Under torch.no_grad() it is the plain sum, for the
positions that are only logged. On a GPU positions go in blocks too: 8192 of them at width 3584 and any vocabulary take
0.13 GB forward and backward in bfloat16, dH included, where one block of all would hold 0.2 GB for sums in float32.

Shapes: N positions, D model width, V vocabulary, C a chunk of it, P pairs of an excluded support.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.distinct import distinct_writes
from pipeline.train.in_place import add_product_, gradient_target
from pipeline.train.squash import compute_dtype, slope, squash
from pipeline.train.support.index import CHUNK, SupportIndex
from pipeline.train.support.products import operand_dtype, product

CHUNK_LOGITS = {"cpu": 2**19, "cuda": 2**22}
"""Logits held at a time: 2 MB in float32 on a CPU, 16 MB on a GPU, so that the passes over them stay in its L2 cache
(50 MB on Hopper)."""
CHUNK_IDS = {"cpu": (128, 2048), "cuda": (128, 2**14)}
"""Least and most ids at a time. On a CPU 32 logged positions take 125 ms in chunks of 2048 ids (70 % of what large
products reach), 140 ms in chunks of 8192, whose logits have left the L2 cache."""


def log_normaliser(hidden_ND: Tensor, weight_VD: Tensor, *, bias: Tensor | None = None, scale: float = 1.0,
                   softcap: float | None = None, vocab: int | None = None,
                   exclude: SupportIndex | Tensor | None = None, in_place: bool = True) -> Tensor:
    """lse_N over the first `vocab` ids (all if None), without those of each row's `exclude`; -inf if none is left.

    in_place: weight and bias must be leaves and get their gradients in .grad; else any tensors, and autograd gets dense
    gradients.
    """
    index = SupportIndex.build(exclude) if isinstance(exclude, Tensor) else exclude
    sweep = Sweep(len(weight_VD) if vocab is None else vocab, scale, softcap, compute_dtype(hidden_ND, weight_VD))
    blocks = sweep.blocks(hidden_ND)
    if len(blocks) == 1:
        return _LogNormaliser.apply(hidden_ND, weight_VD, bias, sweep, index, in_place)
    indices = [None] * len(blocks) if index is None else index.parts()
    return torch.cat([_LogNormaliser.apply(hidden_ND[rows], weight_VD, bias, sweep, part, in_place)
                      for rows, part in zip(blocks, indices, strict=True)])


@dataclass(frozen=True)
class Sweep:
    """One pass over the vocabulary: how it is cut, and how logits are made."""

    vocab: int
    scale: float
    softcap: float | None
    dtype: torch.dtype

    def blocks(self, hidden_ND: Tensor) -> list[slice]:
        """Positions that are swept together: all of them on a CPU, chunks of the support's index elsewhere."""
        count = len(hidden_ND)
        size = count if hidden_ND.device.type == "cpu" else CHUNK
        return [slice(start, min(start + size, count)) for start in range(0, count, size)] if count else [slice(0, 0)]

    def spans(self, hidden_ND: Tensor) -> list[tuple[int, int]]:
        """Chunks of the vocabulary."""
        device = "cpu" if hidden_ND.device.type == "cpu" else "cuda"
        least, most = CHUNK_IDS[device]
        width = max(least, min(most, CHUNK_LOGITS[device] // max(1, len(hidden_ND))))
        return [(start, min(start + width, self.vocab)) for start in range(0, self.vocab, width)]

    def logits(self, hidden_ND: Tensor, weight_CD: Tensor, bias_C: Tensor | None) -> Tensor:
        """In float32 or float64; both operands in one dtype."""
        raw_NC = product(hidden_ND, weight_CD.t())
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
            with distinct_writes(chunk_NC):
                chunk_NC[self._entries[span]] = value
        return chunk_NC


class _LogNormaliser(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, sweep, index, in_place):
        spans = sweep.spans(hidden_ND)
        excluded, operand = _Excluded(index, spans), operand_dtype(hidden_ND, weight_VD)
        rows_ND = hidden_ND.to(operand)
        lse_N = rows_ND.new_full((len(rows_ND),), -torch.inf, dtype=sweep.dtype)
        for start, end in spans:
            logits_NC = sweep.logits(rows_ND, weight_VD[start:end].to(operand), _part(bias_V, start, end))
            excluded.fill_(logits_NC, (start, end), -torch.inf)
            lse_N = torch.logaddexp(lse_N, logits_NC.logsumexp(1))
        ctx.save_for_backward(hidden_ND, lse_N)
        ctx.weight_VD, ctx.bias_V, ctx.sweep, ctx.excluded = weight_VD, bias_V, sweep, excluded
        ctx.operand, ctx.in_place = operand, in_place
        return lse_N

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_N):
        (hidden_ND, lse_N), sweep = ctx.saved_tensors, ctx.sweep
        rows_ND = hidden_ND.to(ctx.operand)
        grad_rows_ND = torch.zeros_like(rows_ND, dtype=sweep.dtype)
        buffer_VD, grad_weight_VD = gradient_target(ctx.weight_VD, ctx.needs_input_grad[1], ctx.in_place)
        buffer_V, grad_bias_V = gradient_target(ctx.bias_V, ctx.needs_input_grad[2], ctx.in_place)
        for start, end in sweep.spans(rows_ND):
            weight_CD = ctx.weight_VD[start:end].to(ctx.operand)
            logits_NC = sweep.logits(rows_ND, weight_CD, _part(ctx.bias_V, start, end))
            grad_NC = (logits_NC - lse_N[:, None]).exp_().mul_(grad_N[:, None])
            grad_NC = ctx.excluded.fill_(grad_NC.mul_(slope(logits_NC, sweep.scale, sweep.softcap)), (start, end), 0.0)
            if buffer_V is not None:
                buffer_V[start:end] += grad_NC.sum(0)
            grad_NC = grad_NC.to(ctx.operand)
            if ctx.needs_input_grad[0]:
                _add(grad_rows_ND, grad_NC, weight_CD)
            if buffer_VD is not None:
                add_product_(buffer_VD[start:end], grad_NC, rows_ND)
        return grad_rows_ND.to(hidden_ND.dtype), grad_weight_VD, grad_bias_V, None, None, None


def _add(sums_ND: Tensor, grad_NC: Tensor, weight_CD: Tensor) -> None:
    """sums += grad weight."""
    if grad_NC.dtype == sums_ND.dtype:
        sums_ND.addmm_(grad_NC, weight_CD)
    else:
        sums_ND += product(grad_NC, weight_CD)


def _part(bias_V: Tensor | None, start: int, end: int) -> Tensor | None:
    return None if bias_V is None else bias_V[start:end]
