"""From a head's matrix product to logits, as Cohere (scale) and Gemma 2 (softcap) define it."""

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 if any tensor is: losses are never computed in half precision."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def squash(raw: Tensor, scale: float, softcap: float | None) -> Tensor:
    """softcap * tanh(scale * raw / softcap); scale * raw without a cap."""
    scaled = raw if scale == 1.0 else raw * scale
    return scaled if softcap is None else torch.tanh(scaled / softcap) * softcap


def slope(logits: Tensor | None, scale: float, softcap: float | None) -> Tensor | float:
    """d squash / d raw, from the logits."""
    return scale if softcap is None else scale * (1 - (logits / softcap) ** 2)
