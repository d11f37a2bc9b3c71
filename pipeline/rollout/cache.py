"""Keys and values of a batch that is being decoded, in buffers that grow by half instead of by one token.

transformers' own dynamic cache copies everything at every token; on a CPU that is up to half of decoding a small
model. Layers that are no plain attention (sliding windows, linear attention) keep transformers' own cache.
"""

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

SPARE = 64
"""Positions allocated at least beyond what is needed now."""


def growing_cache(config) -> DynamicCache:
    """An empty cache for a model with this config."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class GrowingLayer(DynamicLayer):
    """`keys` and `values` are views of the filled part of their buffers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append states of new positions; returns all."""
        filled = self.get_seq_length()
        length = filled + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._buffers is None or length > self._buffers[0].shape[-2]:
            capacity = max(length + SPARE, length * 3 // 2)
            self._buffers = _grown(key_states, self.keys, capacity), _grown(value_states, self.values, capacity)
        for buffer, states in zip(self._buffers, (key_states, value_states)):
            buffer[:, :, filled:length] = states
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may be there several times."""
        if self._buffers is None:
            return
        length = self.get_seq_length()
        self._buffers = tuple(buffer.index_select(0, beam_idx) for buffer in self._buffers)
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


def _grown(like: torch.Tensor, filled: torch.Tensor, capacity: int) -> torch.Tensor:
    buffer = like.new_empty(*like.shape[:2], capacity, like.shape[-1])
    if filled.numel():
        buffer[:, :, :filled.shape[-2]] = filled
    return buffer
