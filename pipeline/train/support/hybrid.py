"""The support head's three products with the frequent ids multiplied and the others gathered.

Under Zipf's law a few hundred ids make up half of all pairs. Each of them costs less as a column of a dense product
over all positions, at the rate of the tensor cores, than its pairs cost as gathered rows; the Triton kernels of
kernels.py take the others. For 8192 x 64 Zipf ids at width 3584 in bfloat16 on paper: 780 ids with more than 64
pairs hold half of the pairs, and multiplying them takes a tenth of the time that gathering these pairs would.
What is multiplied has the precision of products (products.py): float32 operands are exact unless TF32 is
allowed, gradients that are multiplied in bfloat16 are rounded to it. No atomics, as there.

Shapes: N positions, C of a chunk, D model width, V vocabulary, S support entries, F frequent ids, Q their pairs.
"""

import torch
from torch import Tensor

from pipeline.distinct import distinct_writes
from pipeline.train.support import kernels
from pipeline.train.support.index import CHUNK, SupportIndex
from pipeline.train.support.products import operand_dtype, product


def dots(hidden_ND: Tensor, weight_VD: Tensor, index: SupportIndex) -> Tensor:
    """h_n . w_{id(n, s)} in float32, float64 if an input is."""
    out_NS = kernels.dots_at(hidden_ND, weight_VD, _rare(index))
    dtype, frequent = operand_dtype(hidden_ND, weight_VD), index.frequent
    weight_FD, dots_NF = weight_VD[frequent.ids_F].to(dtype), out_NS.new_empty(len(out_NS), len(frequent.ids_F))
    for rows in _chunks(len(out_NS)):
        dots_NF[rows] = product(hidden_ND[rows].to(dtype), weight_FD.t())
    with distinct_writes(out_NS):
        out_NS.view(-1)[frequent.pairs_Q] = dots_NF[frequent.pairs_Q // index.ids_NS.shape[1], frequent.columns_Q]
    return out_NS


def hidden_gradient(hidden_ND: Tensor, weight_VD: Tensor, grad_NS: Tensor, index: SupportIndex) -> Tensor:
    """sum_s g_ns w_{id(n, s)}, in the dtype of hidden_ND."""
    dtype, rare_NS = operand_dtype(hidden_ND, weight_VD), _rare(index)
    weight_FD, grad_NF = weight_VD[index.frequent.ids_F].to(dtype), _scattered(grad_NS, index, dtype)
    out_ND = torch.empty(hidden_ND.shape, dtype=hidden_ND.dtype, device=hidden_ND.device)
    for rows in _chunks(len(out_ND)):
        frequent_CD = product(grad_NF[rows], weight_FD)
        kernels.put_bags(out_ND[rows], weight_VD, grad_NS[rows], rare_NS[rows], frequent_CD)
    return out_ND


def add_weight_gradient(buffer_VD: Tensor, hidden_ND: Tensor, grad_NS: Tensor, index: SupportIndex) -> None:
    """buffer[u] += sum of g_ns h_n over the pairs with id u."""
    kernels.add_rare(buffer_VD, hidden_ND, grad_NS, index)
    dtype, frequent = operand_dtype(hidden_ND, buffer_VD), index.frequent
    grad_NF = _scattered(grad_NS, index, dtype)
    sums_FD = hidden_ND.new_zeros(len(frequent.ids_F), hidden_ND.shape[1], dtype=grad_NS.dtype)
    for rows in _chunks(len(grad_NS)):
        sums_FD += product(grad_NF[rows].t(), hidden_ND[rows].to(dtype))
    with distinct_writes(buffer_VD):
        buffer_VD.index_add_(0, frequent.ids_F, sums_FD.to(buffer_VD.dtype))


def _chunks(positions: int) -> list[slice]:
    """What is held in float32 at a time."""
    return [slice(start, start + CHUNK) for start in range(0, positions, CHUNK)]


def _rare(index: SupportIndex) -> Tensor:
    """ids_NS with -1 in place of frequent ids."""
    rare_NS = index.ids_NS.clone()
    with distinct_writes(rare_NS):
        rare_NS.view(-1)[index.frequent.pairs_Q] = -1
    return rare_NS


def _scattered(grad_NS: Tensor, index: SupportIndex, dtype: torch.dtype) -> Tensor:
    """G_NF: zero but for the pairs. Where a row holds an id twice, entries are added up by sorting, in one order."""
    frequent = index.frequent
    grad_NF = grad_NS.new_zeros(len(grad_NS), len(frequent.ids_F))
    places = frequent.pairs_Q // max(1, grad_NS.shape[1]), frequent.columns_Q
    with distinct_writes(grad_NF):  # adding up sorts in any case
        grad_NF.index_put_(places, grad_NS.flatten()[frequent.pairs_Q], accumulate=index.repeated)
    return grad_NF.to(dtype)
