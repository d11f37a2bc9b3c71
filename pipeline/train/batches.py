"""Which rollouts an optimizer step trains on, and how a step is cut into forward passes.

Promises: the order depends on (run seed, round, epoch, rollout ids) alone: not on how rollouts lie in shards, on the
number of threads, or on a library's random generator. `micro_batch_tokens` changes the cut, never the step.

Shapes: R rollouts of the round, B rollouts of one forward pass.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.ragged import starts_of
from pipeline.streams import hash64


def steps_of_epoch(rollout_id_R: np.ndarray, seed: int, round_number: int, epoch: int,
                   rollouts_per_step: int) -> list[np.ndarray]:
    """Indices of the rollouts of each optimizer step: a permutation cut in pieces; the last may be short."""
    order = np.lexsort((rollout_id_R, hash64(seed, round_number, epoch, rollout_id_R)))
    return np.split(order, range(rollouts_per_step, len(order), rollouts_per_step))


@dataclass(frozen=True)
class MicroBatch:
    """Rollouts of one forward pass: a table padded on the right to `width` tokens, or packed end to end."""

    rollouts_B: np.ndarray
    width: int
    packed_B: np.ndarray | None = None
    """Tokens of each rollout in a packed row; None for a padded table."""

    @property
    def starts_B(self) -> np.ndarray:
        """Where each rollout begins among the flattened hidden states."""
        if self.packed_B is None:
            return np.arange(len(self.rollouts_B)) * self.width
        return starts_of(self.packed_B)


def micro_batches(rollouts: np.ndarray, length_R: np.ndarray, micro_batch_tokens: int,
                  packed: bool = False) -> list[MicroBatch]:
    """Cut `rollouts` into forward passes of at most `micro_batch_tokens` tokens, padding included.

    Longest first, so that neighbours are of similar length and memory that does not suffice shows at once. A rollout
    longer than the limit goes alone; one of length 0 has nothing to compute and goes nowhere.
    """
    rollouts = rollouts[length_R[rollouts] > 0]
    rollouts = rollouts[np.argsort(-length_R[rollouts], kind="stable")]
    batches, start = [], 0
    while start < len(rollouts):
        lengths = length_R[rollouts[start:]]
        width = int(lengths[0])
        fit = micro_batch_tokens // width
        if packed:
            fit = int(np.searchsorted(np.cumsum(lengths), micro_batch_tokens, "right"))
        end = start + max(1, fit)
        batches.append(MicroBatch(rollouts[start:end], width, length_R[rollouts[start:end]] if packed else None))
        start = end
    return batches
