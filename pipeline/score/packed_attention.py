"""Attention over prompts and their samples in one flat sequence, in the form of transformers' attention functions.

On a GPU in half precision torch's kernel for variable lengths takes all segments at once; elsewhere, and for capped
scores, segments of equal sizes go through one call of `scaled_dot_product_attention`. Windows and caps come as
arguments from each layer.

Shapes: T tokens of a batch, Q queries and K keys of a segment, N segments of equal sizes, H heads, G heads of keys and
values, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pipeline.models.varlen import HALF, can_window, causal_attention
from pipeline.ragged import starts_of
from pipeline.score.host import to_device
from pipeline.score.segments import Segments

NAME = "opd_packed"
STANDS_FOR = ("sdpa", "eager", "flash_attention_2")
"""What models are loaded with that are packed."""
KERNEL_WIDTH = 256
"""Largest head of the varlen kernel."""


class Packing:
    """Segments on a device: made once per batch and used by every layer of both models."""

    def __init__(self, segments: Segments, device: torch.device | str = "cpu"):
        self.segments, self.device = segments, torch.device(device)
        self.masks: dict[tuple[int, int, int | None], Tensor] = {}
        self.windows: list[int | None] = []
        """Of every call of attention."""

    @cached_property
    def groups(self) -> list[tuple[Tensor, Tensor]]:
        """(query_NQ, key_NK): places of the queries and keys of all segments with equal sizes."""
        segments = self.segments
        lengths_S, seen_S, keys = segments.length_S, segments.length_S + segments.before_S, segments.keys()
        first_key_S, members = starts_of(seen_S), {}
        for index, size in enumerate(zip(lengths_S.tolist(), seen_S.tolist())):
            members.setdefault(size, []).append(index)
        return [(self._tensor(segments.start_S[each][:, None] + np.arange(queries)),
                 self._tensor(keys[first_key_S[each][:, None] + np.arange(seen)]))
                for (queries, seen), each in members.items()]

    @cached_property
    def varlen(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """(keys, cumulative queries, cumulative keys, most queries, most keys) as the varlen kernel takes them."""
        lengths_S, seen_S = self.segments.length_S, self.segments.length_S + self.segments.before_S
        cumulative = [self._tensor(np.concatenate([[0], np.cumsum(each)]).astype(np.int32))
                      for each in (lengths_S, seen_S)]
        return self._tensor(self.segments.keys()), *cumulative, int(lengths_S.max()), int(seen_S.max())

    def mask(self, queries: int, keys: int, window: int | None) -> Tensor | None:
        """bool [Q, K] of what the last Q of K tokens see; None where it is the plain causal mask."""
        window = None if window is None or window >= keys else window
        if queries == keys and window is None:
            return None
        if (queries, keys, window) not in self.masks:
            key_K = torch.arange(keys, device=self.device)
            query_Q1 = key_K[keys - queries:, None]
            seen_QK = key_K <= query_Q1
            self.masks[queries, keys, window] = seen_QK if window is None else seen_QK & (key_K > query_Q1 - window)
        return self.masks[queries, keys, window]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return to_device(array, self.device)


@contextmanager
def our_attention(model: nn.Module) -> Iterator[None]:
    """Models look their attention up at every call, by a name in their config; no mask is made for names of ours."""
    _register()
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


@lru_cache(maxsize=1)
def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)


def attention(module: nn.Module, query_1HTd: Tensor, key_1GTd: Tensor, value_1GTd: Tensor, attention_mask=None, *,
              packing: Packing, scaling: float | None = None, sliding_window: int | None = None,
              softcap: float | None = None, **_) -> tuple[Tensor, None]:
    """Attention over a packed sequence, in the form of transformers' attention functions: ([1, T, H, d], None)."""
    query_HTd, key_GTd, value_GTd = query_1HTd[0], key_1GTd[0], value_1GTd[0]
    packing.windows.append(sliding_window)
    if _varlen_fits(query_HTd, softcap, sliding_window):
        return _varlen(query_HTd, key_GTd, value_GTd, packing, scaling, sliding_window)[None], None
    heads, out_THd = query_HTd.shape[0], value_GTd.new_empty(query_HTd.shape[1], query_HTd.shape[0], value_GTd.shape[2])
    for query_NQ, key_NK in packing.groups:
        query, key, value = (_take(states, places, heads) for states, places in (
            (query_HTd, query_NQ), (key_GTd, key_NK), (value_GTd, key_NK)))
        mask_QK = packing.mask(query_NQ.shape[1], key_NK.shape[1], sliding_window)
        found_NHQd = (scaled_dot_product_attention(query, key, value, mask_QK, scale=scaling, is_causal=mask_QK is None)
                      if softcap is None else _capped(query, key, value, mask_QK, scaling, softcap))
        out_THd[query_NQ.flatten()] = found_NHQd.transpose(1, 2).flatten(0, 1)
    return out_THd[None], None


def _take(states_HTd: Tensor, places_NK: Tensor, heads: int) -> Tensor:
    """[N, H, K, d], heads of keys and values repeated for their queries."""
    taken = states_HTd.index_select(1, places_NK.flatten()).unflatten(1, places_NK.shape).transpose(0, 1)
    return taken if len(states_HTd) == heads else taken.repeat_interleave(heads // len(states_HTd), 1)


def _capped(query: Tensor, key: Tensor, value: Tensor, mask_QK: Tensor | None, scaling: float | None,
            softcap: float) -> Tensor:
    """softmax(cap * tanh(q k / cap)) v, softmax in float32."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    if mask_QK is None:
        mask_QK = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return scores.masked_fill(~mask_QK, -torch.inf).softmax(-1, dtype=torch.float32).to(query.dtype) @ value


def _varlen_fits(query_HTd: Tensor, softcap: float | None, window: int | None) -> bool:
    return (query_HTd.is_cuda and softcap is None and query_HTd.dtype in HALF and query_HTd.shape[-1] <= KERNEL_WIDTH
            and (window is None or can_window()))


def _varlen(query_HTd: Tensor, key_GTd: Tensor, value_GTd: Tensor, packing: Packing, scaling: float | None,
            window: int | None) -> Tensor:
    """All segments in one kernel."""
    keys, *cut = packing.varlen
    key_KGd, value_KGd = (states.transpose(0, 1)[keys] for states in (key_GTd, value_GTd))
    return causal_attention(query_HTd.transpose(0, 1), key_KGd, value_KGd, tuple(cut), scaling, window)
