"""Training on one round: every optimizer step of it.

    step loss = sum over the step's tokens of factor * loss / denominator

For the token mean the factor is the mask's weight and the denominator counts the step's unmasked tokens, or all of
them; for the sequence mean see objectives/reduction.py. The denominator is counted over the whole step before its first
forward pass, so how a step is cut into micro-batches changes nothing but rounding. A step without an unmasked token is
logged and changes nothing. A loss or gradient that is not finite stops the round before the update. The age cap and the
drift fuse (refresh.py) end a round's training early.

Shapes: N trained positions of a micro-batch, D model width, S support.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.config.model import Train
from pipeline.objectives import Objective, TokenBatch
from pipeline.streams import hash64
from pipeline.train import refresh
from pipeline.train.batches import MicroBatch, micro_batches, steps_of_epoch
from pipeline.train.current import current
from pipeline.train.full_vocabulary import full_vocabulary_loss
from pipeline.train.inputs import Inputs
from pipeline.train.optimizer import warmed_up
from pipeline.train.parallel import OneProcess
from pipeline.train.probe import Probe, probed
from pipeline.train.reader import RoundTokens
from pipeline.train.student import Student
from pipeline.train.support.head import student_logits
from pipeline.train.support.index import CHUNK, SupportIndex
from pipeline.train.teacher import Teacher
from pipeline.transfer import sent
from storage.errors import UserError

CLOSING_POSITIONS = 1024
"""Positions that the student is measured on after its last step of a round."""


@dataclass(frozen=True)
class Work:
    """One forward pass: its tokens, which hidden states are trained on, and which are probed."""

    rollout_id_B: np.ndarray
    inputs: Inputs
    hidden_N: torch.Tensor
    """Rows of the flattened hidden states, one per trained position."""
    row_N: np.ndarray
    """Row of the round of each trained position."""
    batch: TokenBatch
    support: SupportIndex | torch.Tensor | None
    """Of the objective: the index, on a GPU its ids, which are indexed there; None if it takes the whole vocabulary."""
    probe_hidden: torch.Tensor
    probe_batch: TokenBatch
    learns: bool = False
    """Whether any rank has a loss in this turn: then every rank has a backward pass."""


class Trainer:
    """Trains `student` on `data` with `optimizer`; `run_steps` counts the steps of the run, all rounds together."""

    def __init__(self, student: Student, optimizer: torch.optim.Optimizer, objective: Objective, settings: Train,
                 data: RoundTokens, *, grid: int, run_steps: int = 0, teacher: Teacher | None = None,
                 ranks: OneProcess = OneProcess(), packed: bool = False):
        """`teacher`: what an objective over the whole vocabulary compares the student with; `ranks`: who shares the
        steps; `packed`: rollouts of a forward pass lie end to end."""
        self.student, self.optimizer, self.objective, self.settings = student, optimizer, objective, settings
        self.data, self.run_steps, self.teacher = data, run_steps, teacher
        self._ranks, self._packed = ranks, packed
        self._grid = grid
        self._updates = 0
        self._fuse = refresh.DriftFuse(settings.drift_fuse)
        self.stopped = refresh.DONE
        """Why training ended, or will: done, age_cap or drift_fuse."""
        self._predicted_from_N = data.predicted_from()
        self._probed_N = probed(data.rollout_id_R[data.rollout_of_rows()], data.position_N)
        self._trained_N = data.weight_N.numpy() != 0
        self._length_R = self._lengths(self._trained_N | self._probed_N)

    def train_round(self, seed: int, round_number: int, progress: Callable[[str, int, int], None]) -> list[dict]:
        """All steps of the round; returns the rows of the steps table."""
        steps = [rollouts for epoch in range(self.settings.epochs)
                 for rollouts in steps_of_epoch(self.data.rollout_id_R, seed, round_number, epoch,
                                                self.settings.rollouts_per_step)]
        rows: list[dict] = []
        for number, rollouts in enumerate(steps, start=1):
            if self._updates >= (self.settings.age_cap or self.objective.age_cap):
                self.stopped = refresh.AGE_CAP
            if self.stopped != refresh.DONE:
                break
            progress("train", number - 1, len(steps))
            try:
                rows.append({"step_in_round": number, **self.step(rollouts)})
            except torch.OutOfMemoryError as error:
                raise UserError(self._no_room(error)) from error
        progress("train", len(steps), len(steps))
        return rows

    def step(self, rollouts: np.ndarray) -> dict:
        """One optimizer step on `rollouts`; returns its row of the steps table. Not applied if the drift fuse blows."""
        self.run_steps += 1
        learning_rate = warmed_up(self.settings.learning_rate, self.run_steps, self.settings.warmup_steps)
        probe = Probe(self._grid)
        works, denominator = self.prepare_step(rollouts)
        unmasked = int(*self._ranks.total([sum(len(work.batch) for work in works)]))
        loss = self.accumulate(works, denominator, probe) / max(1, denominator)
        metrics = probe.metrics(self._ranks)
        blown = self._fuse.blows(metrics["drift"], metrics["probe_tokens"])
        self.stopped = refresh.DRIFT_FUSE if blown else self.stopped
        row = {"step": self.run_steps, "loss": loss, "learning_rate": learning_rate, "grad_norm": 0.0,
               "rollouts": len(rollouts), "tokens": int(self.data.row_count_R[rollouts].sum()),
               "unmasked_tokens": unmasked, "staleness": self._updates,
               "stopped": refresh.DRIFT_FUSE if blown else None, **metrics}
        if unmasked and not blown:
            row["grad_norm"] = self._update(learning_rate)
        return row

    @torch.no_grad()
    def closing(self) -> dict:
        """What the student says, now that the round is trained on, on a fixed sample of the round's own tokens: whole
        rollouts in the order of their hashed ids until they hold CLOSING_POSITIONS. Columns as in the steps table."""
        order = np.lexsort((self.data.rollout_id_R, hash64(self.data.rollout_id_R)))
        enough = np.searchsorted(np.cumsum(self.data.row_count_R[order]), CLOSING_POSITIONS) + 1
        all_N, probe = np.ones(len(self.data.position_N), dtype=bool), Probe(self._grid)
        for batch in micro_batches(order[:enough], self._lengths(all_N), self.settings.micro_batch_tokens):
            work = self._prepare(batch, trained_N=~all_N, probed_N=all_N)
            self._probe(work, self.student.hidden(work.inputs), probe)
        metrics = probe.metrics()
        return {"positions": metrics.pop("probe_tokens"), **metrics}

    def prepare_step(self, rollouts: np.ndarray) -> tuple[list[Work], int]:
        """The step's forward passes, and what its sum of losses is divided by."""
        works = [self._prepare(batch, self._trained_N, self._probed_N) for batch in
                 self._ranks.turns(rollouts, self._length_R, self.settings.micro_batch_tokens, self._packed)]
        units, *losses = self._ranks.total([sum(self.objective.units(work.batch) for work in works),
                                            *(len(work.batch) for work in works)])
        works = [replace(work, learns=count > 0) for work, count in zip(works, losses)]
        return works, int(self.data.row_count_R[rollouts].sum() if self.settings.denominator == "all" else units)

    def accumulate(self, works: list[Work], denominator: int, probe: Probe) -> float:
        """Add up the gradient of sum(factor * loss) / denominator; return the sum of factor * loss of all ranks."""
        self.student.clear_gradients()
        sums = [self._backward(work, denominator, probe) for work in works]
        values = torch.stack(sums).tolist() if sums else []
        for number, (value, work) in enumerate(zip(values, works), start=1):
            if not np.isfinite(value):
                rollouts = ", ".join(map(str, work.rollout_id_B[:4])) + ", ..." * (len(work.rollout_id_B) > 4)
                raise UserError(self._not_finite(f"the loss of micro-batch {number} of {len(works)}, rollouts "
                                                 f"{rollouts}, is {value}"))
        self.student.reduce_gradients()
        return self._ranks.total([sum(values)])[0]

    def _backward(self, work: Work, denominator: int, probe: Probe) -> torch.Tensor:
        batch, support = work.batch.to(self.student.device), self._indexed(work.support)
        with torch.set_grad_enabled(work.learns):
            hidden = self.student.hidden(work.inputs)
        self._probe(work, hidden.detach(), probe)
        if len(work.batch) == 0:
            if work.learns:
                (hidden.sum() * 0).backward()
            return hidden.new_zeros((), dtype=torch.float64)
        hidden_ND = hidden[sent(work.hidden_N, hidden.device)]
        loss_N = (self._on_whole_vocabulary(work, hidden_ND) if support is None else
                  self._on_support(support, batch, hidden_ND))
        factors_N = sent(self.objective.factors(work.batch), self.student.device)  # a GPU would count by atomics
        loss_sum = (factors_N * loss_N).double().sum()
        (loss_sum / denominator).backward()
        return loss_sum.detach()

    def _indexed(self, support: SupportIndex | torch.Tensor | None) -> SupportIndex | None:
        """Sorted on a GPU, in a few ms, where a CPU takes 100 us for each position of 64 ids."""
        if isinstance(support, torch.Tensor):
            return SupportIndex.build(sent(support, self.student.device), CHUNK)
        return support

    def _on_support(self, index: SupportIndex, batch: TokenBatch, hidden_ND: torch.Tensor) -> torch.Tensor:
        logits = student_logits(hidden_ND, self.student.head.weight_VD, index,
                                vocab=self.student.vocabulary, log_normaliser=self.objective.needs_log_normaliser,
                                **self.student.head_options())
        return self.objective.loss(batch, logits)

    def _on_whole_vocabulary(self, work: Work, hidden_ND: torch.Tensor) -> torch.Tensor:
        assert self.teacher is not None, "an objective over the whole vocabulary needs a teacher"
        teacher_hidden_NE = self.teacher.hidden(work.row_N, work.inputs, work.hidden_N)
        return full_vocabulary_loss(hidden_ND, self.student.head, teacher_hidden_NE, self.teacher.head,
                                    self.objective.divergence, stop_gradient=self.objective.stop_gradient,
                                    vocab=self.student.vocabulary)

    @torch.no_grad()
    def _probe(self, work: Work, hidden: torch.Tensor, probe: Probe) -> None:
        if len(work.probe_batch) == 0:
            return
        batch = work.probe_batch.to(self.student.device)
        probe.add(batch, current(self.student, hidden[sent(work.probe_hidden, hidden.device)], batch))

    def _update(self, learning_rate: float) -> float:
        """Clip, step, and return the gradient's norm before clipping."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        grad_norm = norm.item()
        if not np.isfinite(grad_norm):
            raise UserError(self._not_finite(f"the gradient's norm is {grad_norm}"))
        if grad_norm > self.settings.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.student.updated()
        self._updates += 1
        return grad_norm

    def _prepare(self, batch: MicroBatch, trained_N: np.ndarray, probed_N: np.ndarray) -> Work:
        rows = self.data.rows(batch.rollouts_B)
        within = np.repeat(np.arange(len(batch.rollouts_B)), self.data.row_count_R[batch.rollouts_B])
        hidden = torch.from_numpy(batch.starts_B[within] + self._predicted_from_N[rows])
        trained, probed_rows = trained_N[rows], probed_N[rows]
        tokens = self.data.batch(rows[trained], within[trained])
        support = None if self.objective.whole_vocabulary else self.objective.support(tokens)
        if support is not None and self.student.device.type == "cpu":
            support = SupportIndex.build(support)
        inputs = Inputs(self.data.input_ids(batch), batch.packed_B)
        return Work(self.data.rollout_id_R[batch.rollouts_B], inputs,
                    hidden[torch.from_numpy(trained)], rows[trained], tokens, support,
                    hidden[torch.from_numpy(probed_rows)], self.data.batch(rows[probed_rows], within[probed_rows]))

    def _lengths(self, needed_N: np.ndarray) -> np.ndarray:
        """Tokens of each rollout up to the last hidden state that a needed row is predicted from; 0 if none is."""
        length_R = np.zeros(len(self.data.rollout_id_R), dtype=np.int64)
        np.maximum.at(length_R, self.data.rollout_of_rows()[needed_N], self._predicted_from_N[needed_N] + 1)
        return length_R

    def _no_room(self, error: torch.OutOfMemoryError) -> str:
        said = str(error).split(". ")[:2]
        less = "" if self.settings.gradient_checkpointing else "set train.gradient_checkpointing = true, "
        return (f"training stopped at step {self.run_steps} of the run, nothing was written: {'. '.join(said)}; {less}"
                f"lower train.micro_batch_tokens ({self.settings.micro_batch_tokens}), or share the weights over "
                "train.ranks or train an adapter (train.lora)")

    def _not_finite(self, what: str) -> str:
        return (f"training stopped at step {self.run_steps} of the run, nothing was written: {what}; "
                "lower train.learning_rate, or look for broken scores with `opd sql`")
