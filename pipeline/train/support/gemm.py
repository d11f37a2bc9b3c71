"""The support head's three products on any device, by dense matrix products over the ids that are distinct.

Per chunk of about 1024 positions and per block of 2048 of its distinct ids u, sorted and made unique by the loader:
  forward   Z_CB = H_C W_u^T; the pairs that exist are read out of it
  dH_C      += G_CB W_u, where G_CB is zero but for the pairs
  dW_u      = G_CB^T H_C, added to the rows u of the buffer: distinct, so that no sum depends on the order of threads
Most of Z is computed for nothing: 22,659 of 1024 x 64 Zipf ids are distinct, so 22,659 products per position stand for
64, and V = 151,936 for a dense head. It pays where tensor cores multiply faster than memory gathers. At most 0.13 GB
are held at width 3584 in bfloat16, dH of 8192 positions included.

Shapes: N positions, C of a chunk, D model width, V vocabulary, S support entries, P pairs of a chunk, B ids of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.distinct import distinct_writes
from pipeline.train.support.index import BLOCK, SupportIndex
from pipeline.train.support.products import operand_dtype, product

BLOCKS = 8
"""Blocks of the index per matrix product: 2048 distinct ids."""


def dots(hidden_ND: Tensor, weight_VD: Tensor, index: SupportIndex) -> Tensor:
    """h_n . w_{id(n, s)} in float32, float64 if an input is."""
    dtype = operand_dtype(hidden_ND, weight_VD)
    out_NS = hidden_ND.new_empty(index.ids_NS.shape, dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
    for rows, chunk in _chunks(index):
        hidden_CD, out_P = hidden_ND[rows].to(dtype), out_NS[rows].view(-1)
        for block in _blocks(chunk):
            dots_CB = product(hidden_CD, weight_VD[block.ids_B].to(dtype).t())
            with distinct_writes(out_P):
                out_P[block.pairs] = dots_CB[block.rows, block.columns]
    return out_NS


def hidden_gradient(hidden_ND: Tensor, weight_VD: Tensor, grad_NS: Tensor, index: SupportIndex) -> Tensor:
    """sum_s g_ns w_{id(n, s)}, in the dtype of hidden_ND."""
    dtype = operand_dtype(hidden_ND, weight_VD)
    out_ND = torch.zeros_like(hidden_ND)
    for rows, chunk in _chunks(index):
        sum_CD = hidden_ND.new_zeros(hidden_ND[rows].shape, dtype=grad_NS.dtype)
        for block in _blocks(chunk):
            sum_CD += product(block.scattered(grad_NS[rows], chunk).to(dtype), weight_VD[block.ids_B].to(dtype))
        out_ND[rows] = sum_CD.to(out_ND.dtype)
    return out_ND


def add_weight_gradient(buffer_VD: Tensor, hidden_ND: Tensor, grad_NS: Tensor, index: SupportIndex) -> None:
    """buffer[u] += sum of g_ns h_n over the pairs with id u."""
    dtype = operand_dtype(hidden_ND, buffer_VD)
    for rows, chunk in _chunks(index):
        hidden_CD = hidden_ND[rows].to(dtype)
        for block in _blocks(chunk):
            sums_BD = product(block.scattered(grad_NS[rows], chunk).to(dtype).t(), hidden_CD)
            with distinct_writes(buffer_VD):
                buffer_VD.index_add_(0, block.ids_B, sums_BD.to(buffer_VD.dtype))


def _chunks(index: SupportIndex) -> Iterator[tuple[slice, SupportIndex]]:
    start = 0
    for chunk in index.parts():
        yield slice(start, start + len(chunk.ids_NS)), chunk
        start += len(chunk.ids_NS)


@dataclass(frozen=True)
class _Block:
    """Some distinct ids of a chunk, ascending, and the pairs that hold them."""

    ids_B: Tensor
    pairs: Tensor
    """Indices into the flattened [C, S]."""
    rows: Tensor
    columns: Tensor
    """Place of each pair's id in ids_B."""

    def scattered(self, grad_CS: Tensor, chunk: SupportIndex) -> Tensor:
        """G_CB. Without repetitions every entry is written once; else entries are added up by sorting, in one order."""
        grad_CB = grad_CS.new_zeros(len(grad_CS), len(self.ids_B))
        with distinct_writes(grad_CB):  # adding up sorts in any case
            return grad_CB.index_put_((self.rows, self.columns), grad_CS.flatten()[self.pairs],
                                      accumulate=chunk.repeated)


def _blocks(chunk: SupportIndex) -> Iterator[_Block]:
    rows_P, last_block = chunk.rows_P, len(chunk.bounds) - 1
    for block in range(0, last_block, BLOCKS):
        part = slice(chunk.bounds[block], chunk.bounds[min(block + BLOCKS, last_block)])
        ids_B, pairs = chunk.ids_U[block * BLOCK:(block + BLOCKS) * BLOCK], chunk.order_P[part]
        columns = torch.searchsorted(ids_B, chunk.ids_NS.flatten()[pairs])
        yield _Block(ids_B, pairs, rows_P[part], columns)
