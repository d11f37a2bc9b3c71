"""The output head at the ids of a support: K logits per position instead of V.

    z_ns = squash(h_n . w_{id(n, s)} + b_{id(n, s)}),   squash(x) = softcap * tanh(scale * x / softcap)

A loss on z needs 6 * K * D operations per position, forward and backward; the dense head needs 6 * V * D.
  forward   a sampled product: one dot product per pair (n, s)
  dH_n      = sum_s g_ns w_{id(n, s)}: a weighted bag of rows of W
  dW_u      = sum of g_ns h_n over the pairs with id u: a weighted bag of rows of H, added to weight.grad in place
On a CPU, one thread, the three take 22, 10 and 33 ms for 1024 x 64 Zipf ids at width 896. Embedding bags beat
torch.sparse.mm, 37 and 139 ms, and need no MKL. Everything is computed in float32 (float64 if an input is), whatever
the dtypes of H and W. The path depends on the device alone, never on sizes.

Gradients of weight and bias go straight into .grad (in_place.py).

Shapes: N positions, D model width, V vocabulary, S support entries, P = N * S pairs, U distinct ids, C a chunk.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.objectives.batch import StudentLogits
from pipeline.train import log_normaliser as normaliser
from pipeline.train.in_place import gradient_buffer
from pipeline.train.squash import compute_dtype, slope, squash
from pipeline.train.support_index import BLOCK, SupportIndex

GATHERED = 2**24
"""Most numbers that are gathered at a time off the CPU: 64 MB in float32."""
BLOCKS_OFF_CPU = 32
"""Blocks of distinct ids per weight-gradient step off the CPU, where a launch costs more than a cache miss."""

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch says once per process that CSR tensors are in beta: here
    torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1))


def student_logits(hidden_ND: Tensor, weight_VD: Tensor, index: SupportIndex, *, log_normaliser: bool,
                   bias: Tensor | None = None, scale: float = 1.0, softcap: float | None = None,
                   vocab: int | None = None) -> StudentLogits:
    """What `Objective.loss` needs. `log_normaliser`: with the sums over the first `vocab` rows of the head (all if
    None), the ids both models share."""
    options = {"bias": bias, "scale": scale, "softcap": softcap}
    logits_NS = support_logits(hidden_ND, weight_VD, index, **options)
    if not log_normaliser:
        return StudentLogits(logits_NS)
    log_outside_N = normaliser.log_normaliser(hidden_ND, weight_VD, vocab=vocab, exclude=index, **options)
    log_inside_N = logits_NS.masked_fill(~index.first_NS, -torch.inf).logsumexp(1)
    return StudentLogits(logits_NS, torch.logaddexp(log_inside_N, log_outside_N), log_outside_N)


def support_logits(hidden_ND: Tensor, weight_VD: Tensor, support: SupportIndex | Tensor, *,
                   bias: Tensor | None = None, scale: float = 1.0, softcap: float | None = None) -> Tensor:
    """logits_NS at a support, given as an index or as ids_NS. Differentiable in hidden, weight and bias."""
    index = support if isinstance(support, SupportIndex) else SupportIndex.build(support)
    return _SupportLogits.apply(hidden_ND, weight_VD, bias, index, scale, softcap)


class _SupportLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, index, scale, softcap):
        dtype = compute_dtype(hidden_ND, weight_VD)
        table, ids_NS = _table(weight_VD, index, dtype)
        raw_NS = _dots(hidden_ND.to(dtype), table, ids_NS)
        if bias_V is not None:
            raw_NS = raw_NS + bias_V[index.ids_NS].to(dtype)
        logits_NS = squash(raw_NS, scale, softcap)
        ctx.save_for_backward(hidden_ND, logits_NS if softcap else None)
        ctx.weight_VD, ctx.bias_V, ctx.index, ctx.scale, ctx.softcap = weight_VD, bias_V, index, scale, softcap
        return logits_NS

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_NS):
        hidden_ND, logits_NS = ctx.saved_tensors
        grad_NS = (grad_NS * slope(logits_NS, ctx.scale, ctx.softcap)).contiguous()
        grad_hidden_ND = None
        if ctx.needs_input_grad[0]:
            table, ids_NS = _table(ctx.weight_VD, ctx.index, grad_NS.dtype)
            grad_hidden_ND = _weighted_rows(table, ids_NS, grad_NS).to(hidden_ND.dtype)
        if ctx.needs_input_grad[1]:
            _add_weight_gradient(gradient_buffer(ctx.weight_VD), hidden_ND.to(grad_NS.dtype), grad_NS, ctx.index)
        if ctx.needs_input_grad[2]:
            bias_grad_V = gradient_buffer(ctx.bias_V)
            bias_grad_V.index_add_(0, ctx.index.ids_NS.flatten(), grad_NS.flatten().to(bias_grad_V.dtype))
        return grad_hidden_ND, None, None, None, None, None


def _table(weight_VD: Tensor, index: SupportIndex, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weight and the ids in it; a compact copy in `dtype` if the weight has another."""
    if weight_VD.dtype == dtype:
        return weight_VD, index.ids_NS
    return weight_VD[index.ids_U].to(dtype), torch.searchsorted(index.ids_U, index.ids_NS)


def _dots(hidden_ND: Tensor, table: Tensor, ids_NS: Tensor) -> Tensor:
    """h_n . table[ids_ns] for every pair."""
    if hidden_ND.device.type == "cpu" and ids_NS.numel():
        return _sampled_dots(hidden_ND, table, ids_NS)
    return _gathered_dots(hidden_ND, table, ids_NS)


def _sampled_dots(hidden_ND: Tensor, table: Tensor, ids_NS: Tensor) -> Tensor:
    """By a CSR matrix with the ids as columns, neither sorted nor distinct: its kernel needs neither."""
    starts_N = torch.arange(0, ids_NS.numel() + 1, ids_NS.shape[1])
    pattern = torch.sparse_csr_tensor(starts_N, ids_NS.flatten(), hidden_ND.new_zeros(ids_NS.numel()),
                                      size=(len(ids_NS), len(table)), check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, hidden_ND, table.t(), beta=0.0).values().view(ids_NS.shape)


def _gathered_dots(hidden_ND: Tensor, table: Tensor, ids_NS: Tensor) -> Tensor:
    """By gathering rows, a chunk of positions at a time."""
    rows = max(1, GATHERED // max(1, ids_NS.shape[1] * table.shape[1]))
    chunks = [torch.einsum("nsd,nd->ns", table[ids_CS], hidden_CD)
              for ids_CS, hidden_CD in zip(ids_NS.split(rows), hidden_ND.split(rows))]
    return torch.cat(chunks)


def _weighted_rows(table: Tensor, ids_NS: Tensor, weight_NS: Tensor) -> Tensor:
    """sum_s weight_ns * table[ids_ns]."""
    if not ids_NS.numel():
        return table.new_zeros(len(ids_NS), table.shape[1])
    return F.embedding_bag(ids_NS, table, per_sample_weights=weight_NS, mode="sum")


def _add_weight_gradient(buffer_VD: Tensor, hidden_ND: Tensor, grad_NS: Tensor, index: SupportIndex) -> None:
    """buffer[u] += sum of g_ns * h_n over the pairs with id u, a block of distinct ids at a time."""
    rows_P, grad_P = index.rows_P, grad_NS.flatten()[index.order_P]
    blocks = 1 if buffer_VD.device.type == "cpu" else BLOCKS_OFF_CPU
    starts = range(0, len(index.bounds) - 1, blocks)
    for block in starts:
        first, last = index.bounds[block], index.bounds[min(block + blocks, len(index.bounds) - 1)]
        ids = slice(block * BLOCK, (block + blocks) * BLOCK)
        sums = F.embedding_bag(rows_P[first:last], hidden_ND, index.offsets_U[ids] - first,
                               per_sample_weights=grad_P[first:last], mode="sum")
        buffer_VD.index_add_(0, index.ids_U[ids], sums.to(buffer_VD.dtype))

