"""Where each id of a support occurs: what the support head's sparse products are made of.

Depends on ids alone: built once per forward pass, where the model is. A CPU needs 100 us for each position of 64 ids, a
GPU sorts those of 8192 in milliseconds, in which the host waits for a few numbers. There the same is built for chunks
of positions too, so that a product needs only the ids which are distinct among about a thousand.

Shapes: N positions, S support entries, P = N * S pairs, U distinct ids.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from pipeline.distinct import distinct_writes

BLOCK = 256
"""Distinct ids per block of the weight gradient on a CPU: 0.9 MB of rows at width 896, which stays in the L2 cache."""
CHUNK = 1024
"""Positions per chunk on a GPU. With 64 Zipf ids each, 22,659 of the 65,536 are distinct; more positions share more
rows of the weight, and multiply each with more positions that do not need it."""
FREQUENT = 64
"""Ids with more pairs than this are treated apart on a GPU: the rarest have one pair, the commonest N. On an H200 in
bfloat16 a column of a dense product over 8192 positions costs what gathering 57 rows does, on paper."""
MOST_FREQUENT = 1024
"""The commonest of them at most, so that [N, F] numbers of 8192 positions take 32 MB."""


@dataclass(frozen=True)
class Frequent:
    """The frequent ids, and their pairs in the order of ids. Q of them, F ids."""

    ids_F: Tensor
    pairs_Q: Tensor
    """Indices into the flattened ids_NS."""
    columns_Q: Tensor
    """Place of each pair's id in ids_F."""

    @classmethod
    def of(cls, index: "SupportIndex") -> "Frequent":
        pairs_Q = index.order_P[(index.counts_U > index.limit).repeat_interleave(index.counts_U)]
        columns_Q = torch.arange(len(index.frequent_F), device=pairs_Q.device).repeat_interleave(
            index.counts_U[index.frequent_F])
        return cls(index.ids_U[index.frequent_F], pairs_Q, columns_Q)


@dataclass(frozen=True)
class SupportIndex:
    """Ids by position, and the same pairs (position, id) sorted by id and then by position."""

    ids_NS: Tensor
    first_NS: Tensor
    """False where the row already held the id: sums over distinct ids skip it."""
    ids_U: Tensor
    """Distinct ids, ascending."""
    order_P: Tensor
    """Index into the flattened ids_NS of each pair, in the order of ids."""
    offsets_U: Tensor
    """First pair of each distinct id."""
    counts_U: Tensor
    """Pairs of each distinct id."""
    frequent_F: Tensor
    """Places in ids_U of those with more than `limit` pairs."""
    limit: int
    """FREQUENT, or more where that leaves more than MOST_FREQUENT ids."""
    repeated: bool
    """Whether any row holds an id twice."""
    bounds: tuple[int, ...]
    """First pair of every BLOCK-th distinct id, and P: known on the host, so that no kernel waits for them."""
    chunks: tuple["SupportIndex", ...] = ()
    """Of CHUNK positions each, if they were asked for."""
    frequent: Frequent | None = None
    """Made with the chunks."""

    @classmethod
    def build(cls, ids_NS: Tensor, chunk: int | None = None) -> "SupportIndex":
        """`chunk`: also of every so many positions, which the paths of a GPU read; CHUNK there, none on a CPU."""
        ids_NS = ids_NS.long().contiguous()
        sorted_P, order_P = ids_NS.flatten().sort(stable=True)
        ids_U, counts_U = sorted_P.unique_consecutive(return_counts=True)
        offsets_U = counts_U.cumsum(0) - counts_U
        first_NS = _first(ids_NS, sorted_P, order_P)
        chunks = tuple(cls.build(part_CS) for part_CS in ids_NS.split(chunk)) if chunk and len(ids_NS) else ()
        limit, distinct, *bounds = torch.cat([_limit(counts_U), first_NS.all()[None], offsets_U[::BLOCK]]).tolist()
        index = cls(ids_NS, first_NS, ids_U, order_P, offsets_U, counts_U, (counts_U > limit).nonzero()[:, 0], limit,
                    not distinct, (*bounds, ids_NS.numel()), chunks)
        return replace(index, frequent=Frequent.of(index)) if chunks else index

    @property
    def rows_P(self) -> Tensor:
        """Position of each pair, in the order of ids."""
        return self.order_P // max(1, self.ids_NS.shape[1])

    def parts(self) -> tuple["SupportIndex", ...]:
        """`chunks`; made now where they were not asked for, which lets the host wait for the device."""
        if self.chunks or not len(self.ids_NS):
            return self.chunks
        return tuple(SupportIndex.build(part_CS) for part_CS in self.ids_NS.split(CHUNK))

    def to(self, device, non_blocking: bool = False) -> "SupportIndex":
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "SupportIndex":
        frequent = self.frequent and replace(self.frequent, **_tensors(self.frequent, change))
        return replace(self, **_tensors(self, change), frequent=frequent,
                       chunks=tuple(chunk._map(change) for chunk in self.chunks))


def _tensors(record, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}


def _limit(counts_U: Tensor) -> Tensor:
    """[1]"""
    if len(counts_U) <= MOST_FREQUENT:
        return counts_U.new_full((1,), FREQUENT)
    return counts_U.topk(MOST_FREQUENT + 1).values[-1:].clamp_min(FREQUENT)


def _first(ids_NS: Tensor, sorted_P: Tensor, order_P: Tensor) -> Tensor:
    """Sorted by (id, position), a repetition within a row stands right behind its first occurrence."""
    rows_P = order_P // max(1, ids_NS.shape[1])
    first_P = torch.ones_like(order_P, dtype=torch.bool)
    first_P[1:] = (sorted_P[1:] != sorted_P[:-1]) | (rows_P[1:] != rows_P[:-1])
    with distinct_writes(first_P):
        return torch.empty_like(first_P).scatter_(0, order_P, first_P).view(ids_NS.shape)
