"""What a forward pass reads: padded rows, or rollouts packed into one row that attend to themselves alone.

Shapes: B rows of T tokens; C rollouts of a packed row.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.transfer import sent


@dataclass(frozen=True)
class Inputs:
    """Token ids, and for a packed row how long each rollout in it is."""

    ids_BT: Tensor
    packed_C: np.ndarray | None = None

    def boundaries(self, device: torch.device) -> dict:
        """Keyword arguments of a transformers model that keep packed rollouts apart; none for padded rows, where a
        causal model sees no padding to its right. The names are those of its attention with variable lengths."""
        if self.packed_C is None:
            return {}
        ends_C = np.cumsum(self.packed_C)
        starts = sent(torch.from_numpy(np.concatenate([[0], ends_C]).astype(np.int32)), device)
        position_T = np.arange(ends_C[-1]) - np.repeat(ends_C - self.packed_C, self.packed_C)
        longest = int(self.packed_C.max())
        return {"position_ids": sent(torch.from_numpy(position_T)[None], device), "cu_seq_lens_q": starts,
                "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}
