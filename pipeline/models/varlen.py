"""torch's kernel for attention over sequences end to end, on a GPU in half precision, as releases spell it.

2.11 has a flag for causal attention, later ones a window, and not all take a scale. The causal mask is aligned with the
last key: the queries may be the last of the keys' tokens.

Shapes: T queries and U keys of all sequences, H heads and G heads of keys and values, D width of a head.
"""

import inspect
import math

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
"""What the kernel takes."""
Cut = tuple[Tensor, Tensor, int, int]
"""Where queries and keys of each sequence start (int32, and their end), and the most of each."""


def can_window() -> bool:
    """Whether this torch's kernel knows sliding windows."""
    return "window_size" in _parameters()


def causal_attention(query_THD: Tensor, key_UGD: Tensor, value_UGD: Tensor, cut: Cut, scale: float | None,
                     window: int | None = None) -> Tensor:
    """[T, H, D] in the queries' dtype, bfloat16 or float16."""
    from torch.nn.attention.varlen import varlen_attn

    repeats = query_THD.shape[1] // key_UGD.shape[1]
    key_UHD, value_UHD = (tensor.repeat_interleave(repeats, 1).contiguous() for tensor in (key_UGD, value_UGD))
    options = keywords(_parameters(), window)
    if scale is not None and "scale" in _parameters():
        options["scale"] = scale
    elif scale is not None:  # the kernel's own is D ** -.5
        query_THD = query_THD * (scale * math.sqrt(query_THD.shape[-1]))
    return varlen_attn(query_THD.contiguous(), key_UHD, value_UHD, *cut, **options)


def keywords(parameters, window: int | None) -> dict:
    """How a kernel with these parameters is told to be causal, within a window if one is given."""
    if "window_size" in parameters:
        return {"window_size": (-1 if window is None else window - 1, 0)}
    assert window is None, "asked for a window without can_window()"
    return {"is_causal": True}


def _parameters() -> tuple[str, ...]:
    from torch.nn.attention.varlen import varlen_attn

    return tuple(inspect.signature(varlen_attn).parameters)

