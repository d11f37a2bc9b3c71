"""Who computes a step: one process, or several ranks that share it.

Promises: the cut of a step over ranks depends on lengths alone, so every rank works it out by itself; every rank runs
the same number of forward and backward passes, with empty ones where it has less to do, because FSDP's collectives
must meet; sums are made in the order of ranks, so all ranks see the same bits and decide alike.

Shapes: R rollouts of the round; a turn is one forward pass of every rank.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from pipeline.train.batches import MicroBatch, micro_batches

EMPTY = MicroBatch(np.empty(0, dtype=np.int64), 1)
"""What a rank reads in a turn in which it has no rollout: one token of padding."""


class OneProcess:
    """A single process: nothing to share, nobody to ask."""

    rank, size = 0, 1

    def turns(self, rollouts: np.ndarray, length_R: np.ndarray, micro_batch_tokens: int,
              packed: bool = False) -> list[MicroBatch]:
        """This rank's forward passes of a step, as many as every rank has."""
        return micro_batches(rollouts, length_R, micro_batch_tokens, packed)

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value summed over ranks."""
        return list(values)

    def together(self, values_MN: torch.Tensor) -> torch.Tensor:
        """All ranks' columns side by side, in the order of ranks."""
        return values_MN


class Ranks(OneProcess):
    """The processes of torch.distributed's default group."""

    def __init__(self, device: torch.device):
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device

    def turns(self, rollouts: np.ndarray, length_R: np.ndarray, micro_batch_tokens: int,
              packed: bool = False) -> list[MicroBatch]:
        cuts = [micro_batches(part, length_R, micro_batch_tokens, packed)
                for part in balanced(rollouts, length_R, self.size)]
        mine, most = cuts[self.rank], max(map(len, cuts))
        return mine + [EMPTY] * (most - len(mine))

    def total(self, values: Sequence[float]) -> list[float]:
        parts = self._gather(torch.tensor(values, dtype=torch.float64))
        return torch.stack(parts).sum(0).tolist()

    def together(self, values_MN: torch.Tensor) -> torch.Tensor:
        widths = [int(width) for width in self._gather(torch.tensor([values_MN.shape[1]]))]
        if not any(widths):
            return values_MN
        padded = values_MN.new_zeros(len(values_MN), max(widths))
        padded[:, :values_MN.shape[1]] = values_MN
        return torch.cat([part[:, :width] for part, width in zip(self._gather(padded), widths)], dim=1)

    def send(self, data: bytes | None) -> bytes:
        """What rank 0 has, on every rank."""
        size = torch.tensor([len(data or b"")], device=self.device)
        dist.broadcast(size, 0)
        buffer = torch.frombuffer(bytearray(data or bytes(int(size))), dtype=torch.uint8).to(self.device)
        dist.broadcast(buffer, 0)
        return buffer.cpu().numpy().tobytes()

    def _gather(self, value: torch.Tensor) -> list[torch.Tensor]:
        mine = value.to(self.device).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return [part.cpu() for part in parts]


def balanced(rollouts: np.ndarray, length_R: np.ndarray, parts: int) -> list[np.ndarray]:
    """`rollouts` in parts of about as many tokens: longest first, each to the part that has least so far."""
    order = rollouts[np.argsort(-length_R[rollouts], kind="stable")]
    part_of, load = np.empty(len(order), dtype=np.int64), np.zeros(parts, dtype=np.int64)
    for place, rollout in enumerate(order):
        part_of[place] = load.argmin()
        load[part_of[place]] += length_R[rollout]
    return [order[part_of == part] for part in range(parts)]
