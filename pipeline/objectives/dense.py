"""Dense objectives: support x divergence x outside mass x stop-gradient x reduction.

Shapes: N positions, S ids of the support.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from pipeline.objectives.batch import StudentLogits, TokenBatch
from pipeline.objectives.divergence import Divergence
from pipeline.objectives.outside import Outside
from pipeline.objectives.reduction import Reduced, Reduction, TokenMean
from pipeline.objectives.support import Selector

DENSE_AGE_CAP = 8
"""Steps per rollout batch. A teacher's top-K depends on the prefix alone: on a small language model dense cached losses
stay flat to about 120 steps."""


@dataclass(frozen=True)
class Dense(Reduced):
    """loss_n = divergence(p on the buckets of S_n, q on the same buckets)."""

    name: str
    select: Selector
    divergence: Divergence
    outside: Outside
    stop_gradient: bool = False
    """Of the student's log-prob inside the log-ratio."""
    age_cap: int = DENSE_AGE_CAP
    reduction: Reduction = TokenMean()
    whole_vocabulary: ClassVar[bool] = False

    @property
    def needs_log_normaliser(self) -> bool:
        return self.outside.needs_log_normaliser

    def support(self, batch: TokenBatch) -> Tensor:
        return self.select(batch).ids_NS

    def loss(self, batch: TokenBatch, student: StudentLogits) -> Tensor:
        log_p_NB, log_q_NB = self.outside.buckets(self.select(batch), student)
        return self.divergence(log_p_NB, log_q_NB, self.stop_gradient)


@dataclass(frozen=True)
class WholeVocabulary(Reduced):
    """loss_n = divergence(p, q) over all ids that both models share, taken in chunks by train/full_vocabulary.py."""

    name: str
    divergence: Divergence
    teacher: Literal["cache", "live"]
    """Its distribution comes from the stored hidden states, or from the teacher itself."""
    stop_gradient: bool = False
    """Of the student's log-prob inside the log-ratio."""
    age_cap: int = DENSE_AGE_CAP
    reduction: Reduction = TokenMean()
    needs_log_normaliser: ClassVar[bool] = False
    whole_vocabulary: ClassVar[bool] = True
