"""What the trainer knows of an objective."""

from typing import Protocol

from torch import Tensor

from pipeline.objectives.batch import StudentLogits, TokenBatch


class Objective(Protocol):
    """A loss per kept position.

    A step's loss is the sum of `factors(batch) * loss(batch, student)` over its micro batches, divided by the sum of
    `units(batch)`. Positions with weight 0 are not in the batch: nothing has to survive being multiplied by 0.
    """

    name: str
    needs_log_normaliser: bool
    """True: `student.lse_N` and `student.log_outside_N` must be there, with gradient (a pass over the vocabulary)."""

    age_cap: int
    """Most optimizer steps on one round's rollouts unless train.age_cap says otherwise."""
    whole_vocabulary: bool
    """True: the loss compares student and teacher on all shared ids and is computed by train/full_vocabulary.py from
    `divergence` (divergence.py), `stop_gradient` and `teacher` ("cache" or "live"); `support` and `loss` are not
    called and need not be there."""

    def support(self, batch: TokenBatch) -> Tensor:
        """ids_NS, int64, at which the loss needs the student's logits. Depends on the cache alone; a row may hold an
        id twice."""

    def loss(self, batch: TokenBatch, student: StudentLogits) -> Tensor:
        """loss_N, not weighted."""

    def factors(self, batch: TokenBatch) -> Tensor:
        """factor_N: weights and reduction."""

    def units(self, batch: TokenBatch) -> int:
        """What the step's sum is divided by."""
