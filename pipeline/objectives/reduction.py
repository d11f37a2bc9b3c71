"""From losses per position to one number per step: factors per position, and the count they are divided by.

Shapes: N positions, R rollouts of the batch. A batch holds whole rollouts, less their positions of weight 0.
"""

from typing import Protocol

import torch
from torch import Tensor

from pipeline.objectives.batch import TokenBatch


class Reduction(Protocol):
    """A step's value is the sum of factors * losses over its micro batches, divided by the sum of their units."""

    def factors(self, batch: TokenBatch) -> Tensor: ...

    def units(self, batch: TokenBatch) -> int: ...


class TokenMean:
    """(1 / #positions) sum_n w_n loss_n over the whole step: long rollouts count more (Revisiting OPD)."""

    def factors(self, batch: TokenBatch) -> Tensor:
        return batch.weight_N

    def units(self, batch: TokenBatch) -> int:
        return int(batch.kept_N.sum())


class SequenceMean:
    """(1 / #rollouts) sum_r (1 / #positions of r) sum_{n in r} w_n loss_n: every rollout counts the same."""

    def factors(self, batch: TokenBatch) -> Tensor:
        positions_R = torch.bincount(batch.rollout_N, weights=batch.kept_N.to(batch.weight_N.dtype))
        return batch.weight_N / positions_R[batch.rollout_N].clamp_min(1).to(batch.weight_N.dtype)

    def units(self, batch: TokenBatch) -> int:
        return batch.rollout_N[batch.kept_N].unique().numel()


REDUCTIONS: dict[str, Reduction] = {"token_mean": TokenMean(), "sequence_mean": SequenceMean()}
"""By `train.reduction`."""


class Reduced:
    """Gives an objective the trainer's `factors` and `units` from its `reduction`."""

    reduction: Reduction

    def factors(self, batch: TokenBatch) -> Tensor:
        return self.reduction.factors(batch)

    def units(self, batch: TokenBatch) -> int:
        return self.reduction.units(batch)
