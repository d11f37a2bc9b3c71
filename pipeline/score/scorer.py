"""The scorer: teacher and behaviour student over the same rollouts, in one pass.

    hidden = trunk(tokens)[rows that the student wrote]        per batch of rollouts
    logits = head(hidden)                                      per chunk of `head_rows` rows, [head_rows, V] per model
    statistics                                                 per block of rows that stays in cache

Promises: no tensor of all rows by the vocabulary, whatever the sizes; probabilities over the shared ids only; sums in
float32; the same rows, settings and thread count give the same bits; batching changes values by rounding alone.

Shapes: B rollouts of T tokens in a batch, N rows of a chunk, R rows of a block, D model width, V shared vocabulary,
W = V padded, K teacher entries, k student entries.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import torch
from torch import Tensor, nn

from pipeline.config.model import Score
from pipeline.models import output_head, trunk
from pipeline.score.columns import Columns
from pipeline.score.rows import Batch, TokenRows
from pipeline.score.statistics import COLUMNS, LOWEST, Rows, rank, softmax_rows_, top_k
from storage import schemas
from storage.codec import snap
from storage.errors import UserError

BLOCK_ROWS = {"cpu": 8, "cuda": 256}
"""Rows of a block: three float32 blocks of V = 151,936 take 15 MB at 8 rows; a GPU wants fewer, larger kernels."""


def score_rollouts(rollouts: pa.Table, student: nn.Module, teacher: nn.Module, shared_vocab: int, settings: Score,
                   progress=lambda what, done, total: None) -> pa.Table:
    """Score every token that the student wrote; returns a table of schemas.tokens, rows in its order.

    `shared_vocab`: ids 0 .. shared_vocab - 1 mean the same to both models (vocabulary_agreement). Raises UserError for
    a K beyond it and for rollouts with tokens beyond it, IntegrityError for rollouts whose lists do not fit.
    """
    rows = TokenRows(rollouts)
    _check_sizes(rows, student, teacher, shared_vocab, settings)
    columns = Columns(rows, schemas.TopK(settings.teacher_top_k, settings.student_top_k,
                                         settings.student_log_probs_at_teacher_topk))
    scorer = Scorer(student, teacher, shared_vocab, settings, min(settings.head_rows, len(rows)))
    done = 0
    for batch in rows.batches(settings.batch_tokens):
        for part, statistics in scorer.score(batch, rows.token_N):
            columns.put(batch.row_R[part], statistics)
            done += part.stop - part.start
            progress("score", done, len(rows))
    return columns.table()


class Scorer:
    """Two models on one device, and the buffers that every chunk uses again."""

    def __init__(self, student: nn.Module, teacher: nn.Module, vocabulary: int, settings: Score, chunk_rows: int):
        self.vocabulary, self.settings, self.chunk_rows = vocabulary, settings, chunk_rows
        block_rows = BLOCK_ROWS[teacher.device.type]
        self.student = Side(student, vocabulary, chunk_rows, block_rows)
        self.teacher = Side(teacher, vocabulary, chunk_rows, block_rows)
        self.scratch_RW = torch.empty_like(self.teacher.block_RW)

    @torch.inference_mode()
    def score(self, batch: Batch, token_N) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Yield slices of the batch's rows with their statistics."""
        device = self.teacher.block_RW.device
        input_ids_BT, hidden_index_R, token_R1 = (torch.from_numpy(array).to(device) for array in (
            batch.input_ids_BT, batch.hidden_index_R, token_N[batch.row_R, None].astype("int64")))
        hidden_student, hidden_teacher = (side.hidden(input_ids_BT, hidden_index_R)
                                          for side in (self.student, self.teacher))
        for start in range(0, len(token_R1), self.chunk_rows):
            part = slice(start, min(start + self.chunk_rows, len(token_R1)))
            yield part, self._chunk(hidden_student[part], hidden_teacher[part], token_R1[part])

    def _chunk(self, hidden_student: Tensor, hidden_teacher: Tensor, token_N1: Tensor) -> dict[str, Tensor]:
        self.student.project(hidden_student)
        self.teacher.project(hidden_teacher)
        block_rows = len(self.scratch_RW)
        blocks = [self._block(slice(start, min(start + block_rows, len(token_N1))), token_N1)
                  for start in range(0, len(token_N1), block_rows)]
        return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}

    def _block(self, part: slice, token_N1: Tensor) -> dict[str, Tensor]:
        token_R1, settings = token_N1[part], self.settings
        scratch_RW = self.scratch_RW[:len(token_R1)]
        logits_RW = self.teacher.logits(part)
        teacher_rank_R = rank(logits_RW, token_R1, scratch_RW)
        teacher, teacher_ids_RK = self._distribution(logits_RW, settings.teacher_top_k, scratch_RW)
        columns = {"teacher_log_prob": teacher.log_probs_at(token_R1)[:, 0], "teacher_rank": teacher_rank_R,
                   "teacher_entropy": teacher.entropy(), "teacher_topk_ids": teacher_ids_RK.int(),
                   "teacher_topk_log_probs": self._snap(teacher.log_probs_at(teacher_ids_RK)),
                   "teacher_log_tail": teacher.log_mass_outside(teacher_ids_RK)}
        student, student_ids_Rk = self._distribution(self.student.logits(part), settings.student_top_k, scratch_RW)
        columns |= {"student_log_prob": student.log_probs_at(token_R1)[:, 0], "student_entropy": student.entropy(),
                    "student_topk_ids": student_ids_Rk.int(),
                    "student_topk_log_probs": self._snap(student.log_probs_at(student_ids_Rk)),
                    "teacher_log_probs_at_student_topk": self._snap(teacher.log_probs_at(student_ids_Rk)),
                    "student_log_tail": student.log_mass_outside(teacher_ids_RK)}
        if settings.student_log_probs_at_teacher_topk:
            columns["student_log_probs_at_teacher_topk"] = self._snap(student.log_probs_at(teacher_ids_RK))
        return columns

    def _distribution(self, logits_RW: Tensor, k: int, scratch_RW: Tensor) -> tuple[Rows, Tensor]:
        ids_RK = top_k(logits_RW, k)
        return softmax_rows_(logits_RW, ids_RK[:, :1], self.vocabulary, scratch_RW), ids_RK

    def _snap(self, log_probs: Tensor) -> Tensor:
        return snap(log_probs, self.settings.grid)


class Side:
    """One model: its trunk, its head, a chunk of projected logits and one block of them as padded float32."""

    def __init__(self, model: nn.Module, vocabulary: int, chunk_rows: int, block_rows: int):
        self.trunk, self.head, self.vocabulary = trunk(model), output_head(model), vocabulary
        weight_VD = self.head.weight_VD
        self.chunk_NV = weight_VD.new_empty((chunk_rows, vocabulary), requires_grad=False)
        width = -(-vocabulary // COLUMNS) * COLUMNS
        self.block_RW = torch.full((block_rows, width), LOWEST, device=weight_VD.device)

    def hidden(self, input_ids_BT: Tensor, hidden_index_R: Tensor) -> Tensor:
        """Hidden states of the rows; causal attention never looks at the padding on the right."""
        return self.trunk(input_ids_BT).flatten(0, 1)[hidden_index_R]

    def project(self, hidden_ND: Tensor) -> None:
        self.head.project(hidden_ND, self.vocabulary, out=self.chunk_NV[:len(hidden_ND)])

    def logits(self, part: slice) -> Tensor:
        """Float32 logits of some rows of the chunk, valid until the next call."""
        block_RW = self.block_RW[:part.stop - part.start]
        self.head.finish_(block_RW[:, :self.vocabulary].copy_(self.chunk_NV[part]))
        return block_RW


def _check_sizes(rows: TokenRows, student: nn.Module, teacher: nn.Module, vocabulary: int, settings: Score) -> None:
    for side, model, k in (("teacher", teacher, settings.teacher_top_k), ("student", student, settings.student_top_k)):
        if k > vocabulary:
            raise UserError(f"score.{side}_top_k = {k} is larger than the {vocabulary} tokens both models share: "
                            "lower it")
        if len(output_head(model).weight_VD) < vocabulary:
            raise UserError(f"the {side}'s head has {len(output_head(model).weight_VD)} rows for a vocabulary of "
                            f"{vocabulary}: this is not its tokenizer")
    if len(rows) and not 0 <= rows.token_N.min() <= rows.token_N.max() < vocabulary:
        raise UserError(f"rollouts hold token {rows.token_N.max()}, but the models share only ids below {vocabulary}: "
                        "the student wrote a token its teacher does not have; keep it from sampling such ids")
