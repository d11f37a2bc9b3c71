"""Where each id of a support occurs: what the support head's sparse products are made of.

Depends on ids alone: built once per forward pass, on the CPU, and moved to where the model is.

Shapes: N positions, S support entries, P = N * S pairs, U distinct ids.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256
"""Distinct ids per block of the weight gradient on a CPU: 0.9 MB of rows at width 896, which stays in the L2 cache."""


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
    bounds: tuple[int, ...]
    """First pair of every BLOCK-th distinct id, and P: known on the host, so that no kernel waits for them."""

    @classmethod
    def build(cls, ids_NS: Tensor) -> "SupportIndex":
        ids_NS = ids_NS.long().contiguous()
        sorted_P, order_P = ids_NS.flatten().sort(stable=True)
        ids_U, counts_U = sorted_P.unique_consecutive(return_counts=True)
        offsets_U = counts_U.cumsum(0) - counts_U
        return cls(ids_NS, _first(ids_NS, sorted_P, order_P), ids_U, order_P, offsets_U,
                   (*offsets_U[::BLOCK].tolist(), ids_NS.numel()))

    @property
    def rows_P(self) -> Tensor:
        """Position of each pair, in the order of ids."""
        return self.order_P // max(1, self.ids_NS.shape[1])

    def to(self, device) -> "SupportIndex":
        return SupportIndex(self.ids_NS.to(device), self.first_NS.to(device), self.ids_U.to(device),
                            self.order_P.to(device), self.offsets_U.to(device), self.bounds)


def _first(ids_NS: Tensor, sorted_P: Tensor, order_P: Tensor) -> Tensor:
    """Sorted by (id, position), a repetition within a row stands right behind its first occurrence."""
    rows_P = order_P // max(1, ids_NS.shape[1])
    first_P = torch.ones_like(order_P, dtype=torch.bool)
    first_P[1:] = (sorted_P[1:] != sorted_P[:-1]) | (rows_P[1:] != rows_P[:-1])
    return torch.empty_like(first_P).scatter_(0, order_P, first_P).view(ids_NS.shape)
