"""Dense objectives: support x divergence x outside mass x stop-gradient x reduction.

Shapes: N positions, S ids of the support.
"""

from dataclasses import dataclass

from torch import Tensor

from pipeline.objectives.batch import StudentLogits, TokenBatch
from pipeline.objectives.divergence import Divergence
from pipeline.objectives.outside import Outside
from pipeline.objectives.reduction import Reduced, Reduction, TokenMean
from pipeline.objectives.support import Selector


@dataclass(frozen=True)
class Dense(Reduced):
    """loss_n = divergence(p on the buckets of S_n, q on the same buckets)."""

    name: str
    select: Selector
    divergence: Divergence
    outside: Outside
    stop_gradient: bool = False
    """Of the student's log-prob inside the log-ratio."""
    reduction: Reduction = TokenMean()

    @property
    def needs_log_normaliser(self) -> bool:
        return self.outside.needs_log_normaliser

    def support(self, batch: TokenBatch) -> Tensor:
        return self.select(batch).ids_NS

    def loss(self, batch: TokenBatch, student: StudentLogits) -> Tensor:
        log_p_NB, log_q_NB = self.outside.buckets(self.select(batch), student)
        return self.divergence(log_p_NB, log_q_NB, self.stop_gradient)
