"""The support head's three products on a GPU as Triton kernels that gather rows and store nothing between.

  dots               one program per position and BLOCK_S ids of its support: h_n stays, rows of W stream past
  hidden_gradient    one program per position and BLOCK_D columns: sum_s g_ns w_{id(n, s)}
  add_weight_gradient  one program per distinct id and BLOCK_D columns: sum of g_ns h_n over the pairs with that id, in
                     the order of positions, added to that row of the buffer
No atomics: every number is written by one program, and the same input gives the same bits. Inputs are read in their own
dtype and summed in float32 (float64 if one is), gradients are not rounded. Bounded by memory: each product reads
N * S * D numbers, of W or of H, most of them from the L2 cache where ids repeat.
Frequent ids, of many pairs, have tiles that are long in pairs and short in columns: under Zipf's law the commonest
has a pair at every position, and one long loop would keep the others waiting.

Triton is imported with this module: the caller has looked for it. TRITON_INTERPRET=1, set before that, runs the kernels
on a CPU, which is how they are tested without a GPU.

Shapes: N positions, D model width, V vocabulary, S support entries, U distinct ids, F frequent ones.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.train.squash import compute_dtype
from pipeline.train.support.index import SupportIndex


@dataclass(frozen=True)
class Tile:
    """Rows that are gathered at a time, columns of them, and warps of a program."""

    rows: int
    columns: int
    warps: int = 4


DOTS, BAGS, RARE_IDS, FREQUENT_IDS = Tile(16, 256), Tile(8, 512), Tile(4, 512), Tile(64, 64)
"""8 KB of bfloat16 are under way per program, and eight programs and more share a multiprocessor: by Little's law twice
what hides the latency of an H200's memory. Chosen on paper; benchmarks/gpu.py times the neighbours of each."""


def dots(hidden_ND: Tensor, weight_VD: Tensor, index: SupportIndex, tile: Tile = DOTS) -> Tensor:
    """h_n . w_{id(n, s)} in float32, float64 if an input is."""
    return dots_at(hidden_ND, weight_VD, index.ids_NS, tile)


def dots_at(hidden_ND: Tensor, weight_VD: Tensor, ids_NS: Tensor, tile: Tile = DOTS) -> Tensor:
    """The same; 0 where an id is negative."""
    (positions, support), width = ids_NS.shape, hidden_ND.shape[1]
    out_NS = hidden_ND.new_empty((positions, support), dtype=compute_dtype(hidden_ND, weight_VD))
    if not out_NS.numel():
        return out_NS
    hidden_ND, weight_VD = _rows(hidden_ND), _rows(weight_VD)
    with torch.cuda.device_of(hidden_ND):  # kernels start on the current device, whatever their tensors lie on
        _dots_kernel[positions, triton.cdiv(support, tile.rows)](
            hidden_ND, weight_VD, ids_NS, out_NS, support, hidden_ND.stride(0), weight_VD.stride(0),
            **_meta(out_NS, width, tile))
    return out_NS


def hidden_gradient(hidden_ND: Tensor, weight_VD: Tensor, grad_NS: Tensor, index: SupportIndex,
                    tile: Tile = BAGS) -> Tensor:
    """sum_s g_ns w_{id(n, s)}, in the dtype of hidden_ND."""
    out_ND = torch.empty(hidden_ND.shape, dtype=hidden_ND.dtype, device=hidden_ND.device)
    put_bags(out_ND, weight_VD, grad_NS, index.ids_NS, None, tile)
    return out_ND


def put_bags(out_ND: Tensor, weight_VD: Tensor, grad_NS: Tensor, ids_NS: Tensor, more_ND: Tensor | None,
             tile: Tile = BAGS) -> None:
    """out = more + sum_s g_ns w_{id(n, s)} over the ids that are not negative; rows of `out` and `more` lie densely."""
    if not out_ND.numel():
        return
    weight_VD, width = _rows(weight_VD), out_ND.shape[1]
    with torch.cuda.device_of(out_ND):
        _bags_kernel[len(out_ND), triton.cdiv(width, tile.columns)](
            weight_VD, ids_NS, grad_NS.contiguous(), out_ND, out_ND if more_ND is None else more_ND, ids_NS.shape[1],
            weight_VD.stride(0), MORE=more_ND is not None, **_meta(grad_NS, width, tile))


def add_weight_gradient(buffer_VD: Tensor, hidden_ND: Tensor, grad_NS: Tensor, index: SupportIndex,
                        tiles: tuple[Tile, Tile] = (RARE_IDS, FREQUENT_IDS)) -> None:
    """buffer[u] += sum of g_ns h_n over the pairs with id u. `tiles`: of rare and of frequent ids."""
    add_rare(buffer_VD, hidden_ND, grad_NS, index, tiles[0])
    if len(index.frequent_F):
        _add_segments(buffer_VD, hidden_ND, grad_NS, index, index.frequent_F, tiles[1], rare=False)


def add_rare(buffer_VD: Tensor, hidden_ND: Tensor, grad_NS: Tensor, index: SupportIndex, tile: Tile = RARE_IDS) -> None:
    """The same without the frequent ids."""
    if grad_NS.numel():
        _add_segments(buffer_VD, hidden_ND, grad_NS, index, index.ids_U, tile, rare=True)


def _add_segments(buffer_VD: Tensor, hidden_ND: Tensor, grad_NS: Tensor, index: SupportIndex, places: Tensor,
                  tile: Tile, *, rare: bool) -> None:
    """One program per entry of `places`: the distinct ids of these places, or, `rare`, all that are not frequent."""
    assert buffer_VD.stride(1) == 1, "a gradient's rows are contiguous"
    hidden_ND, width = _rows(hidden_ND), hidden_ND.shape[1]
    with torch.cuda.device_of(buffer_VD):
        _segments_kernel[len(places), triton.cdiv(width, tile.columns)](
            buffer_VD, hidden_ND, grad_NS.contiguous(), index.order_P, index.ids_U, index.offsets_U, index.counts_U,
            places, grad_NS.shape[1], hidden_ND.stride(0), buffer_VD.stride(0), index.limit, RARE=rare,
            **_meta(grad_NS, width, tile))


def _rows(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _meta(sums: Tensor, width: int, tile: Tile) -> dict:
    """What a kernel is compiled for."""
    columns = min(tile.columns, max(16, triton.next_power_of_2(width)))
    return {"WIDTH": width, "ROWS": tile.rows, "COLUMNS": columns, "num_warps": tile.warps,
            "SUM": tl.float64 if sums.dtype == torch.float64 else tl.float32}


@triton.jit
def _dots_kernel(hidden, weight, ids, out, support, hidden_stride, weight_stride, WIDTH: tl.constexpr,
                 ROWS: tl.constexpr, COLUMNS: tl.constexpr, SUM: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    id_S = tl.load(ids + n * support + s, mask=s < support, other=-1).to(tl.int64)
    sums = tl.zeros([ROWS, COLUMNS], SUM)
    for start in range(0, WIDTH, COLUMNS):
        d = start + tl.arange(0, COLUMNS)
        h_D = tl.load(hidden + n * hidden_stride + d, mask=d < WIDTH, other=0.0).to(SUM)
        inside = (id_S >= 0)[:, None] & (d < WIDTH)[None, :]
        w_SD = tl.load(weight + id_S[:, None] * weight_stride + d[None, :], mask=inside, other=0.0).to(SUM)
        sums += tl.where(id_S[:, None] >= 0, w_SD * h_D[None, :], 0.0)
    tl.store(out + n * support + s, tl.sum(sums, 1), mask=s < support)


@triton.jit
def _bags_kernel(weight, ids, grad, out, more, support, weight_stride, MORE: tl.constexpr, WIDTH: tl.constexpr,
                 ROWS: tl.constexpr, COLUMNS: tl.constexpr, SUM: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], SUM)
    for start in range(0, support, ROWS):
        s = start + tl.arange(0, ROWS)
        id_S = tl.load(ids + n * support + s, mask=s < support, other=-1).to(tl.int64)
        g_S = tl.load(grad + n * support + s, mask=id_S >= 0, other=0.0)
        inside = (id_S >= 0)[:, None] & (d < WIDTH)[None, :]
        w_SD = tl.load(weight + id_S[:, None] * weight_stride + d[None, :], mask=inside, other=0.0).to(SUM)
        sums += w_SD * g_S[:, None]
    total_D = tl.sum(sums, 0)
    if MORE:
        total_D += tl.load(more + n * WIDTH + d, mask=d < WIDTH, other=0.0)
    tl.store(out + n * WIDTH + d, total_D.to(out.dtype.element_ty), mask=d < WIDTH)


@triton.jit
def _segments_kernel(buffer, hidden, grad, order, ids, offsets, counts, places, support, hidden_stride, buffer_stride,
                     limit, RARE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                     SUM: tl.constexpr):
    u = tl.program_id(0).to(tl.int64)
    if not RARE:
        u = tl.load(places + u)
    count = tl.load(counts + u).to(tl.int32)
    if RARE:
        if count > limit:
            return
    first = tl.load(offsets + u)
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], SUM)
    for start in range(0, count, ROWS):
        p = start + tl.arange(0, ROWS)
        pair_R = tl.load(order + first + p, mask=p < count, other=0)
        g_R = tl.load(grad + pair_R, mask=p < count, other=0.0)
        inside = (p < count)[:, None] & (d < WIDTH)[None, :]
        row_R = (pair_R.to(tl.int32) // support).to(tl.int64)
        h_RD = tl.load(hidden + row_R[:, None] * hidden_stride + d[None, :], mask=inside, other=0.0).to(SUM)
        sums += h_RD * g_R[:, None]
    at = buffer + tl.load(ids + u) * buffer_stride + d
    found = tl.load(at, mask=d < WIDTH, other=0.0).to(SUM) + tl.sum(sums, 0)
    tl.store(at, found.to(buffer.dtype.element_ty), mask=d < WIDTH)
