"""What an objective is given: the cached numbers of the positions it trains on, and the student's logits there.

Shapes: N kept positions, K the teacher's stored list, k the student's, S ids the objective asked for. Log-probs are
natural logarithms at temperature 1 over the vocabulary both models share.
"""

from dataclasses import dataclass, fields

from torch import Tensor

from pipeline.transfer import sent


@dataclass(frozen=True)
class TokenBatch:
    """Columns of `tokens` and `mask` (storage/schemas.py) for N positions, in the order of their hidden states."""

    token_ids_N: Tensor
    """int64: the sampled tokens y_t."""
    teacher_log_prob_N: Tensor
    """log q(y_t)."""
    student_log_prob_N: Tensor
    """log p_0(y_t) under the checkpoint that wrote the rollout, by our scorer."""
    sampling_log_prob_N: Tensor
    """Log of the density y_t was drawn from: the only right denominator of an importance ratio."""
    teacher_log_tail_N: Tensor
    """Teacher's log mass outside the stored top-K."""
    student_log_tail_N: Tensor
    """p_0's log mass outside the teacher's stored top-K."""
    teacher_topk_ids_NK: Tensor
    """int64, distinct in each row, most likely first."""
    teacher_topk_log_probs_NK: Tensor
    student_topk_ids_Nk: Tensor
    student_topk_log_probs_Nk: Tensor
    teacher_at_student_Nk: Tensor
    """log q at p_0's top-k."""
    weight_N: Tensor
    """From the masks; a position with weight 0 is dropped before the head."""
    rollout_N: Tensor
    """int64: which rollout of this batch a position belongs to, from 0; positions of a rollout are in order."""
    position_N: Tensor
    """int64: index into response_tokens. Masked positions and an environment's tokens leave gaps."""

    def __len__(self) -> int:
        return self.token_ids_N.shape[0]

    @property
    def kept_N(self) -> Tensor:
        """True where the weight is not 0."""
        return self.weight_N != 0

    def select(self, index: Tensor) -> "TokenBatch":
        """The positions of a boolean mask or of a list of indices."""
        return self._map(lambda column: column[index])

    def to(self, device) -> "TokenBatch":
        """Copied without waiting."""
        return self._map(lambda column: sent(column, device))

    def _map(self, change) -> "TokenBatch":
        return TokenBatch(**{field.name: change(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True)
class StudentLogits:
    """The current student at the ids an objective asked for; gradients flow through all three."""

    logits_NS: Tensor
    """Raw logits z, in the order of `Objective.support`."""
    lse_N: Tensor | None = None
    """logsumexp of z over the whole shared vocabulary."""
    log_outside_N: Tensor | None = None
    """logsumexp of z over the ids that are not in the row's support. Summed as such, because 1 - mass in float32 has
    18 % median error at 3e-7 and is negative in 3.6 % of rows."""
