"""The support head's three products on a CPU: by sparse matrices, one row of ids per position.

  forward   a sampled product: one dot product per pair (n, s)
  dH_n      = sum_s g_ns w_{id(n, s)}: a weighted bag of rows of W
  dW_u      = sum of g_ns h_n over the pairs with id u: a weighted bag of rows of H
One thread takes 22, 10 and 33 ms for 1024 x 64 Zipf ids at width 896. Embedding bags beat torch.sparse.mm, 37 and
139 ms, and need no MKL. Everything is computed in float32 (float64 if an input is).

Shapes: N positions, D model width, V vocabulary, S support entries, P = N * S pairs, U distinct ids.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.train.squash import compute_dtype
from pipeline.train.support.index import BLOCK, SupportIndex

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch says once per process that CSR tensors are in beta: here
    torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1))


def dots(hidden_ND: Tensor, weight_VD: Tensor, index: SupportIndex) -> Tensor:
    """h_n . w_{id(n, s)}: by a CSR matrix with the ids as columns, neither sorted nor distinct, which its kernel does
    not need."""
    dtype = compute_dtype(hidden_ND, weight_VD)
    table, ids_NS = _table(weight_VD, index, dtype)
    if not ids_NS.numel():
        return hidden_ND.new_zeros(ids_NS.shape, dtype=dtype)
    if len(table) < ids_NS.shape[1]:  # rows of repeated ids: no CSR matrix has more entries than places
        return (hidden_ND.to(dtype) @ table.t()).gather(1, ids_NS)
    starts_N = torch.arange(0, ids_NS.numel() + 1, ids_NS.shape[1])
    pattern = torch.sparse_csr_tensor(starts_N, ids_NS.flatten(), hidden_ND.new_zeros(ids_NS.numel(), dtype=dtype),
                                      size=(len(ids_NS), len(table)), check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, hidden_ND.to(dtype), table.t(), beta=0.0).values().view(ids_NS.shape)


def hidden_gradient(hidden_ND: Tensor, weight_VD: Tensor, grad_NS: Tensor, index: SupportIndex) -> Tensor:
    """sum_s g_ns w_{id(n, s)}, in the dtype of hidden_ND."""
    table, ids_NS = _table(weight_VD, index, grad_NS.dtype)
    if not ids_NS.numel():
        return torch.zeros_like(hidden_ND)
    return F.embedding_bag(ids_NS, table, per_sample_weights=grad_NS, mode="sum").to(hidden_ND.dtype)


def add_weight_gradient(buffer_VD: Tensor, hidden_ND: Tensor, grad_NS: Tensor, index: SupportIndex) -> None:
    """buffer[u] += sum of g_ns h_n over the pairs with id u, a block of distinct ids at a time."""
    hidden_ND = hidden_ND.to(grad_NS.dtype)
    rows_P, grad_P = index.rows_P, grad_NS.flatten()[index.order_P]
    for block, (first, last) in enumerate(zip(index.bounds, index.bounds[1:])):
        ids = slice(block * BLOCK, (block + 1) * BLOCK)
        sums = F.embedding_bag(rows_P[first:last], hidden_ND, index.offsets_U[ids] - first,
                               per_sample_weights=grad_P[first:last], mode="sum")
        buffer_VD.index_add_(0, index.ids_U[ids], sums.to(buffer_VD.dtype))


def _table(weight_VD: Tensor, index: SupportIndex, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weight and the ids in it; a compact copy in `dtype` if the weight has another."""
    if weight_VD.dtype == dtype:
        return weight_VD, index.ids_NS
    return weight_VD[index.ids_U].to(dtype), torch.searchsorted(index.ids_U, index.ids_NS)
