"""Training on one round: every optimizer step of it.

    step loss = sum over the step's tokens of factor * loss / denominator

For the token mean the factor is the mask's weight and the denominator counts the step's unmasked tokens, or all of
them; for the sequence mean see objectives/reduction.py. The denominator is counted over the whole step before its first
forward pass, so how a step is cut into micro-batches changes nothing but rounding. A step without an unmasked token is
logged and changes nothing. A loss or gradient that is not finite stops the round before the update.

Shapes: N trained positions of a micro-batch, D model width, S support.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.config.model import Train
from pipeline.objectives import Objective, TokenBatch
from pipeline.train.batches import MicroBatch, micro_batches, steps_of_epoch
from pipeline.train.log_normaliser import log_normaliser
from pipeline.train.optimizer import warmed_up
from pipeline.train.probe import Probe, probed
from pipeline.train.reader import RoundTokens
from pipeline.train.student import Student
from pipeline.train.support_head import student_logits, support_logits
from pipeline.train.support_index import SupportIndex
from storage.errors import UserError


@dataclass(frozen=True)
class Work:
    """One forward pass: its tokens, which hidden states are trained on, and which are probed."""

    rollout_id_B: np.ndarray
    input_ids_BT: torch.Tensor
    hidden_N: torch.Tensor
    """Rows of the flattened hidden states, one per trained position."""
    batch: TokenBatch
    index: SupportIndex
    probe_hidden: torch.Tensor
    probe_batch: TokenBatch


class Trainer:
    """Trains `student` on `data` with `optimizer`; `run_steps` counts the steps of the run, all rounds together."""

    def __init__(self, student: Student, optimizer: torch.optim.Optimizer, objective: Objective, settings: Train,
                 data: RoundTokens, *, grid: int, run_steps: int = 0):
        self.student, self.optimizer, self.objective, self.settings = student, optimizer, objective, settings
        self.data, self.run_steps = data, run_steps
        self._grid = grid
        self._updates = 0
        self._predicted_from_N = data.predicted_from()
        self._probed_N = probed(data.rollout_id_R[data.rollout_of_rows()], data.position_N)
        self._length_R = self._needed_lengths()

    def train_round(self, seed: int, round_number: int, progress: Callable[[str, int, int], None]) -> list[dict]:
        """All steps of the round; returns the rows of the steps table."""
        steps = [rollouts for epoch in range(self.settings.epochs)
                 for rollouts in steps_of_epoch(self.data.rollout_id_R, seed, round_number, epoch,
                                                self.settings.rollouts_per_step)]
        rows = []
        for number, rollouts in enumerate(steps, start=1):
            progress("train", number - 1, len(steps))
            rows.append({"step_in_round": number, **self.step(rollouts)})
        progress("train", len(steps), len(steps))
        return rows

    def step(self, rollouts: np.ndarray) -> dict:
        """One optimizer step on `rollouts`; returns its row of the steps table."""
        self.run_steps += 1
        learning_rate = warmed_up(self.settings.learning_rate, self.run_steps, self.settings.warmup_steps)
        probe = Probe(self._grid)
        works, denominator = self.prepare_step(rollouts)
        unmasked = sum(len(work.batch) for work in works)
        loss = self.accumulate(works, denominator, probe) / max(1, denominator)
        row = {"step": self.run_steps, "loss": loss, "learning_rate": learning_rate, "grad_norm": 0.0,
               "rollouts": len(rollouts), "tokens": int(self.data.row_count_R[rollouts].sum()),
               "unmasked_tokens": unmasked, "staleness": self._updates, **probe.metrics()}
        if unmasked:
            row["grad_norm"] = self._update(learning_rate)
        return row

    def prepare_step(self, rollouts: np.ndarray) -> tuple[list[Work], int]:
        """The step's forward passes, and what its sum of losses is divided by."""
        works = [self._prepare(batch) for batch in
                 micro_batches(rollouts, self._length_R, self.settings.micro_batch_tokens)]
        if self.settings.denominator == "all":
            return works, int(self.data.row_count_R[rollouts].sum())
        return works, sum(self.objective.units(work.batch) for work in works)

    def accumulate(self, works: list[Work], denominator: int, probe: Probe) -> float:
        """Add up the gradient of sum(factor * loss) / denominator; return the sum of factor * loss."""
        self.student.clear_gradients()
        sums = [self._backward(work, denominator, probe) for work in works]
        values = torch.stack(sums).tolist() if sums else []
        for number, (value, work) in enumerate(zip(values, works), start=1):
            if not np.isfinite(value):
                rollouts = ", ".join(map(str, work.rollout_id_B[:4])) + ", ..." * (len(work.rollout_id_B) > 4)
                raise UserError(self._not_finite(f"the loss of micro-batch {number} of {len(works)}, rollouts "
                                                 f"{rollouts}, is {value}"))
        return sum(values)

    def _backward(self, work: Work, denominator: int, probe: Probe) -> torch.Tensor:
        with torch.set_grad_enabled(len(work.batch) > 0):
            hidden = self.student.hidden(work.input_ids_BT)
        self._probe(work, hidden.detach(), probe)
        if len(work.batch) == 0:
            return hidden.new_zeros((), dtype=torch.float64)
        batch = work.batch.to(self.student.device)
        logits = student_logits(hidden[work.hidden_N.to(hidden.device)], self.student.head.weight_VD,
                                work.index.to(self.student.device), vocab=self.student.vocabulary,
                                log_normaliser=self.objective.needs_log_normaliser, **self.student.head_options())
        loss_sum = (self.objective.factors(batch) * self.objective.loss(batch, logits)).double().sum()
        (loss_sum / denominator).backward()
        return loss_sum.detach()

    @torch.no_grad()
    def _probe(self, work: Work, hidden: torch.Tensor, probe: Probe) -> None:
        if len(work.probe_batch) == 0:
            return
        batch = work.probe_batch.to(self.student.device)
        hidden_ND = hidden[work.probe_hidden.to(hidden.device)]
        head, options = self.student.head.weight_VD, self.student.head_options()
        ids_NS = torch.cat([batch.token_ids_N[:, None], batch.teacher_topk_ids_NK, batch.student_topk_ids_Nk], dim=1)
        lse_N = log_normaliser(hidden_ND, head, vocab=self.student.vocabulary, **options)
        log_probs_NS = support_logits(hidden_ND, head, ids_NS, **options) - lse_N[:, None]
        k_teacher = batch.teacher_topk_ids_NK.shape[1]
        probe.add(batch, log_probs_NS[:, 0], log_probs_NS[:, 1:1 + k_teacher], log_probs_NS[:, 1 + k_teacher:])

    def _update(self, learning_rate: float) -> float:
        """Clip, step, and return the gradient's norm before clipping."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        grad_norm = norm.item()
        if not np.isfinite(grad_norm):
            raise UserError(self._not_finite(f"the gradient's norm is {grad_norm}"))
        if grad_norm > self.settings.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self._updates += 1
        return grad_norm

    def _prepare(self, batch: MicroBatch) -> Work:
        rows = self.data.rows(batch.rollouts_B)
        within = np.repeat(np.arange(len(batch.rollouts_B)), self.data.row_count_R[batch.rollouts_B])
        hidden = torch.from_numpy(within * batch.width + self._predicted_from_N[rows])
        trained, probed_rows = self.data.weight_N.numpy()[rows] != 0, self._probed_N[rows]
        tokens = self.data.batch(rows[trained], within[trained])
        return Work(self.data.rollout_id_R[batch.rollouts_B], self.data.input_ids(batch),
                    hidden[torch.from_numpy(trained)], tokens, SupportIndex.build(self.objective.support(tokens)),
                    hidden[torch.from_numpy(probed_rows)], self.data.batch(rows[probed_rows], within[probed_rows]))

    def _needed_lengths(self) -> np.ndarray:
        """Tokens of each rollout up to the last hidden state that is trained on or probed; 0 if none is."""
        needed_N = (self.data.weight_N.numpy() != 0) | self._probed_N
        length_R = np.zeros(len(self.data.rollout_id_R), dtype=np.int64)
        np.maximum.at(length_R, self.data.rollout_of_rows()[needed_N], self._predicted_from_N[needed_N] + 1)
        return length_R

    def _not_finite(self, what: str) -> str:
        return (f"training stopped at step {self.run_steps} of the run, nothing was written: {what}; "
                "lower train.learning_rate, or look for broken scores with `opd sql`")
