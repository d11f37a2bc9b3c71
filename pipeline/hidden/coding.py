"""How hidden states are stored: bfloat16 as they are, or float8 e4m3 with one float32 scale per row.

    bfloat16   2 D bytes per token; a number is off by at most 2^-8 of itself, that of a teacher in bfloat16 by nothing
    float8     D + 4 bytes per token; at most 2^-4. The scale makes the row's largest number 448, the type's largest

The errors of a row have no common sign and mostly cancel in a logit, a sum of D products: on tiny random models whose
logits have a standard deviation of 1 to 1.4 nats a token's KL is off by .0005 nat on average (at most .003) in bfloat16
and by .008 (.055) in float8, the gradient by .1 % and 4 % of its largest entry.

Shapes: N tokens, D model width, B bytes. Little-endian, as every machine that torch runs on.
"""

import numpy as np
import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float8_e4m3fn).max
_TYPES = {"bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}
"""By score.teacher_hidden_states."""


def stored_bytes(dtype: str, width: int) -> int:
    """B: length of the column `hidden` in a row."""
    return width * _TYPES[dtype].itemsize


def bytes_per_token(dtype: str, width: int) -> int:
    """What a token costs, before compression: its numbers, and in float8 its scale."""
    return stored_bytes(dtype, width) + (4 if dtype == "float8" else 0)


def encode(hidden_ND: Tensor, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """(bytes_NB, scale_N) of finite numbers."""
    scale_N1 = torch.ones(len(hidden_ND), 1, device=hidden_ND.device)
    if dtype == "float8":
        hidden_ND = hidden_ND.float()
        largest_N1 = hidden_ND.abs().amax(1, keepdim=True)
        scale_N1 = torch.where(largest_N1 > 0, largest_N1 / LARGEST, scale_N1)
        hidden_ND = (hidden_ND / scale_N1).clamp(-LARGEST, LARGEST)  # beyond it the conversion makes NaN
    stored_ND = hidden_ND.to(_TYPES[dtype]).contiguous()
    return stored_ND.view(torch.uint8).cpu().numpy(), scale_N1[:, 0].cpu().numpy()


def decode(bytes_NB: np.ndarray, scale_N: np.ndarray, dtype: str, device: torch.device | str = "cpu") -> Tensor:
    """hidden_ND in float32."""
    stored_ND = torch.from_numpy(bytes_NB).to(device).view(_TYPES[dtype])
    return stored_ND.float() * torch.from_numpy(scale_N).to(device)[:, None]
