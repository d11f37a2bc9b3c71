"""Where the teacher's hidden states of a micro-batch come from, for objectives over the whole vocabulary.

    cache   the shards of `hidden` and the head beside them, hashes checked; no file of the teacher is opened
    live    the teacher itself, pinned and checked as in scoring, reads the student's own prompts and responses

Cached rows are compared with the rollouts one by one, and with the scores on a few: the stored log-probs of sampled
tokens must come out again, or the hidden states belong to other tokens or to another teacher. They are kept as they are
coded, in a scratch file without a name that is mapped into memory, and become float32 one micro-batch at a time.

Shapes: N rows of the round, M of a micro-batch, B sequences of T tokens, E teacher width.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.config.objectives import missing_hidden_states
from pipeline.context import RoundContext
from pipeline.hidden import coding
from pipeline.hidden.head import read_head
from pipeline.hidden.teacher import checked_teacher
from pipeline.models import Head, device, output_head, trunk
from pipeline.objectives import Objective
from pipeline.train.inputs import Inputs
from pipeline.train.reader import RoundTokens, check_rows
from storage.codec import fixed_bytes_to_numpy
from storage.errors import IntegrityError
from storage.records import Receipt
from storage.rounds import Round, local_checkpoint

CHECKED_ROWS = 64
"""Rows whose log-probs are compared with the scores: one product with the head."""
MAX_DIFFERENCE = 0.5
"""Nats, of the median row; bfloat16 products and float8 states stay below .1."""


class Teacher(Protocol):
    """The teacher of a round that is trained on."""

    head: Head

    def hidden(self, row_M: np.ndarray, inputs: Inputs, index_M: Tensor) -> Tensor:
        """hidden_ME of the rows `row_M` of the round, whose hidden states stand at `index_M` of the flattened
        [B * T] when `inputs` are read."""


def open_teacher(context: RoundContext, objective: Objective, data: RoundTokens) -> Teacher | None:
    """The teacher that `objective` needs; None if its cached scores are enough.

    Raises UserError where the round has no hidden states, or the teacher's files are not those of the run.
    """
    if not objective.whole_vocabulary:
        return None
    if objective.teacher == "live":
        return LiveTeacher.load(context)
    return CachedTeacher.read(context.round, objective.name, data)


@dataclass(frozen=True)
class LiveTeacher:
    """Runs the teacher's trunk on every micro-batch."""

    model: torch.nn.Module
    head: Head

    @classmethod
    def load(cls, context: RoundContext) -> LiveTeacher:
        model = checked_teacher(context)
        return cls(model, output_head(model))

    @torch.no_grad()
    def hidden(self, row_M: np.ndarray, inputs: Inputs, index_M: Tensor) -> Tensor:
        hidden_BTE = trunk(self.model)(inputs.ids_BT.to(self.model.device), **inputs.boundaries(self.model.device))
        return hidden_BTE.flatten(0, 1)[index_M.to(self.model.device)]


@dataclass(frozen=True)
class CachedTeacher:
    """Looks the rows up."""

    head: Head
    dtype: str
    """As in score.teacher_hidden_states."""
    stored_NB: np.ndarray
    scale_N: np.ndarray

    @classmethod
    def read(cls, round: Round, objective: str, data: RoundTokens) -> CachedTeacher:
        """Raises UserError if the round has no hidden states, IntegrityError if they are not those of `data`."""
        if not round.plan().hidden:
            raise missing_hidden_states(objective, round.run, round.number)
        round.input_files("hidden")  # refuses shards that are not finished
        receipts = round.receipts("hidden")
        _check_alike(round, receipts)
        stored_NB, scale_N = _read_rows(round, receipts, data)
        head = read_head(local_checkpoint(round.store, receipts[0].head), device())
        teacher = cls(head, receipts[0].facts["dtype"], stored_NB, scale_N)
        teacher.check_scores(data, f"round {round.number} of {round.run}")
        return teacher

    def hidden(self, row_M: np.ndarray, inputs: Inputs | None, index_M: Tensor | None) -> Tensor:
        return coding.decode(self.stored_NB[row_M], self.scale_N[row_M], self.dtype, self.head.weight_VD.device)

    def check_scores(self, data: RoundTokens, where: str) -> None:
        """Raise IntegrityError unless the sampled tokens' log-probs are those of the scores, on a few rows."""
        rows = np.unique(np.linspace(0, len(data.position_N) - 1, CHECKED_ROWS).astype(int))
        if not len(data.position_N):
            return
        hidden_ME = self.hidden(rows, None, None).to(self.head.weight_VD.dtype)
        log_q_MV = self.head.logits(hidden_ME).log_softmax(1).cpu()
        token_M1 = data.columns["token_id"][rows].long()[:, None]
        difference = (log_q_MV.gather(1, token_M1)[:, 0] - data.columns["teacher_log_prob"][rows]).abs().median().item()
        if not difference <= MAX_DIFFERENCE:
            raise IntegrityError(f"{where}: the teacher's hidden states give log-probs that differ from its scores by "
                                 f"{difference:.2f} nats: they are of another teacher or of other tokens; run "
                                 "`opd verify`")


def _check_alike(round: Round, receipts: list[Receipt]) -> None:
    """One teacher, one coding, one head; and the teacher that scored the tokens."""
    scored = {receipt.facts.get("teacher_key") for receipt in round.receipts("score")} - {None}
    for receipt in receipts:
        facts = receipt.facts
        if receipt.head is None or receipt.head != receipts[0].head or facts != receipts[0].facts:
            raise IntegrityError(f"round {round.number} of {round.run}: the hidden states of shards "
                                 f"{receipts[0].shard} and {receipt.shard} are not of one teacher and coding")
        if scored - {facts["teacher_key"]}:
            raise IntegrityError(f"round {round.number} of {round.run}: its hidden states are of teacher "
                                 f"{facts['teacher_key'][:12]}, its scores of {min(scored)[:12]}")


def _read_rows(round: Round, receipts: list[Receipt], data: RoundTokens) -> tuple[np.ndarray, np.ndarray]:
    """(stored_NB, scale_N): the rows of all shards, each compared with the round's row of the same number."""
    rollout_id_N = data.rollout_id_R[data.rollout_of_rows()]
    where, width, start, scales = f"round {round.number} of {round.run}", 0, 0, []
    with tempfile.TemporaryFile(prefix="opd-hidden-") as scratch:
        for receipt in receipts:
            table = round.read("hidden", receipt.shard)
            rows = slice(start, start := start + len(table))
            check_rows("hidden", table, rollout_id_N[rows], data.position_N[rows], f"{where}, shard {receipt.shard}")
            stored_NB = fixed_bytes_to_numpy(table["hidden"])
            width = stored_NB.shape[1]
            scratch.write(stored_NB)
            scales.append(table["scale"].to_numpy())
        if start != len(rollout_id_N):
            raise IntegrityError(f"{where}: hidden states of {start} tokens where the rollouts have "
                                 f"{len(rollout_id_N)}; run `opd verify`")
        scratch.flush()
        mapped_NB = np.memmap(scratch, np.uint8, "r", shape=(start, width)) if start else np.empty((0, width), np.uint8)
    return mapped_NB, np.concatenate(scales)
