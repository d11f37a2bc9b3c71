"""The scorer: teacher and behaviour student over the same rollouts, in one pass.

    hidden = trunk(tokens)[rows that the student wrote]        per batch of rollouts
    logits = head(hidden)                                      per chunk of `head_rows` rows, [head_rows, V] per model
    statistics                                                 per block of rows that stays in cache

Rollouts with a payload take the teacher's columns from it: only the student reads them.

Promises: no tensor of all rows by the vocabulary, whatever the sizes; probabilities over the shared ids only; sums in
float32; the same rows, settings and thread count give the same bits; batching changes values by rounding alone.

Shapes: B rollouts of T tokens in a batch, N rows of a chunk, R rows of a block, D model width, V shared vocabulary,
W = V padded, K teacher entries, k student entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from pipeline.config.model import Score
from pipeline.models import output_head
from pipeline.score.columns import Columns, empty_column
from pipeline.score.host import to_device, to_host
from pipeline.score.packed import PackedTrunk
from pipeline.score.packed_attention import Packing
from pipeline.score.payload import TEACHER_COLUMNS, Payload
from pipeline.score.rows import Batch, TokenRows
from pipeline.score.statistics import COLUMNS, LOWEST, rank, softmax_rows_, top_k
from storage import schemas
from storage.codec import snap
from storage.errors import UserError

SNAPPED = frozenset({"teacher_topk_log_probs", "student_topk_log_probs", "teacher_log_probs_at_student_topk",
                     "student_log_probs_at_teacher_topk"})
"""Columns whose log-probs lie on the grid."""
BLOCK_ROWS = {"cpu": 8, "cuda": 256}
"""Rows of a block: three float32 blocks of V = 151,936 take 15 MB at 8 rows; a GPU wants fewer, larger kernels."""


def score_rollouts(rollouts: pa.Table, student: nn.Module, teacher: nn.Module, shared_vocab: int, settings: Score,
                   progress=lambda what, done, total: None) -> pa.Table:
    """Score every token that the student wrote; returns a table of schemas.tokens, rows in its order.

    `shared_vocab`: ids 0 .. shared_vocab - 1 mean the same to both models (vocabulary_agreement). Raises UserError for
    a K beyond it and for rollouts with tokens beyond it, IntegrityError for rollouts whose lists do not fit.
    """
    return score_reusing(rollouts, student, lambda: teacher, shared_vocab, settings, {}, progress)[0]


def score_reusing(rollouts: pa.Table, student: nn.Module, load_teacher: Callable[[], nn.Module], shared_vocab: int,
                  settings: Score, payloads: dict[str, Payload],
                  progress=lambda what, done, total: None) -> tuple[pa.Table, list[Payload]]:
    """The same with the teacher's columns of some rollouts known: also returns the payloads used, one per rollout.

    `payloads` are found by token hash. One is used if it holds the teacher's log-prob of every id in the student's
    top-k, which is computed here. The teacher is loaded once a rollout needs it, and after the student's pass.
    """
    rows = TokenRows(rollouts)
    _check_sizes(rows, shared_vocab, settings)
    _check_head("student", student, shared_vocab)
    columns = Columns(rows, schemas.TopK(settings.teacher_top_k, settings.student_top_k,
                                         settings.student_log_probs_at_teacher_topk))
    used = _score_known(columns, fitting(rows, payloads), student, shared_vocab, settings, progress)
    if columns.filled < len(rows):
        teacher = load_teacher()
        _check_head("teacher", teacher, shared_vocab)
        scorer = Scorer(student, teacher, shared_vocab, settings, len(rows))
        rest = set(range(len(rows.rollouts))) - used.keys()
        for row_R, statistics in scorer.score(rows, rest):
            columns.put(row_R, statistics)
            progress("score", columns.filled, len(rows))
    return columns.table(), list(used.values())


def score_teacher(rollouts: pa.Table, teacher: nn.Module, shared_vocab: int, settings: Score,
                  progress=lambda what, done, total: None) -> dict[str, np.ndarray]:
    """The teacher's own columns (payload.TEACHER_COLUMNS) of every row, without a student."""
    rows = TokenRows(rollouts)
    _check_sizes(rows, shared_vocab, settings)
    _check_head("teacher", teacher, shared_vocab)
    schema, done = schemas.tokens(schemas.TopK(settings.teacher_top_k, settings.student_top_k)), 0
    arrays = {name: empty_column(schema.field(name).type, len(rows)) for name in TEACHER_COLUMNS}
    for row_R, statistics in Scorer(None, teacher, shared_vocab, settings, len(rows)).score(rows):
        for name, values in statistics.items():
            arrays[name][row_R] = values
        done += len(row_R)
        progress("score", done, len(rows))
    return arrays


def fitting(rows: TokenRows, payloads: dict[str, Payload]) -> dict[int, Payload]:
    """Payloads by their rollout's place, for rollouts with rows."""
    found = {index: payloads[token_hash] for index, token_hash in enumerate(rows.rollouts["token_hash"].to_pylist())
             if token_hash in payloads}
    return {index: payload for index, payload in found.items()
            if payload.fits(rows.position_N[rows.rows_of(index)], rows.token_N[rows.rows_of(index)])}


def _score_known(columns: Columns, known: dict[int, Payload], student: nn.Module, vocabulary: int, settings: Score,
                 progress) -> dict[int, Payload]:
    """Fill the rows of those rollouts whose payload holds all that is asked of the teacher; returns these."""
    rows, used = columns.rows, {}
    scorer = Scorer(student, None, vocabulary, settings, len(rows)) if known else None
    for batch in rows.batches(settings.batch_tokens, known):
        teacher = [known[index].teacher_columns(settings.teacher_top_k) for index, _ in batch.parts]
        ids_RK = np.concatenate([each["teacher_topk_ids"] for each in teacher])
        chunks = [statistics for _, statistics in to_host(scorer.chunks(batch, rows.token_N, ids_RK))]
        student_R = {name: np.concatenate([each[name] for each in chunks]) for name in chunks[0]}
        for (index, part), mine in zip(batch.parts, teacher):
            mine |= {name: values[part] for name, values in student_R.items()}
            at_student_Rk = known[index].log_probs_at(mine["student_topk_ids"])
            if at_student_Rk is not None:
                columns.put(batch.row_R[part], mine | {"teacher_log_probs_at_student_topk": at_student_Rk})
                columns.reused_from_M[index], used[index] = known[index].manifest, known[index]
        progress("score", columns.filled, len(rows))
    return used


class Scorer:
    """Two models on one device, or one of them, and the buffers that every chunk uses again."""

    def __init__(self, student: nn.Module | None, teacher: nn.Module | None, vocabulary: int, settings: Score,
                 rows: int):
        """`rows` are all there will be: buffers are no larger than that."""
        self.vocabulary, self.settings, self.chunk_rows = vocabulary, settings, min(settings.head_rows, rows)
        self.student, self.teacher = (
            None if model is None else Side(model, vocabulary, settings.batch_tokens, self.chunk_rows)
            for model in (student, teacher))
        if student is teacher:  # one model on both sides: each uses its block up
            self.teacher.block_RW = torch.empty_like(self.teacher.block_RW)
        self.sides = [side for side in (self.student, self.teacher) if side]
        self.device = self.sides[0].block_RW.device
        self.scratch_RW = torch.empty_like(self.sides[0].block_RW)

    def score(self, rows: TokenRows, members=None) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yield rows, longest rollouts first, and their statistics on the host, which are copied while the device
        computes the next ones."""
        chunks = ((batch.row_R[part], statistics) for batch in rows.batches(self.settings.batch_tokens, members)
                  for part, statistics in self.chunks(batch, rows.token_N))
        yield from to_host(chunks)

    @torch.inference_mode()
    def chunks(self, batch: Batch, token_N, teacher_ids_RK=None) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Yield slices of the batch's rows with their statistics on the device; without a teacher the student's,
        which need `teacher_ids_RK`, the ids of the teacher's list at each row."""
        input_ids_T, hidden_index_R, token_R1 = (to_device(array, self.device) for array in (
            batch.input_ids_T, batch.hidden_index_R, token_N[batch.row_R, None].astype("int64")))
        if teacher_ids_RK is not None:
            teacher_ids_RK = to_device(teacher_ids_RK.astype("int64"), self.device)
        packing = Packing(batch.segments, self.device)
        hidden = [side.hidden(input_ids_T, packing, hidden_index_R) for side in self.sides]
        for start in range(0, len(token_R1), self.chunk_rows):
            part = slice(start, min(start + self.chunk_rows, len(token_R1)))
            for side, hidden_RD in zip(self.sides, hidden):
                side.project(hidden_RD[part])
            yield part, self._chunk(token_R1[part], None if teacher_ids_RK is None else teacher_ids_RK[part])

    def _chunk(self, token_N1: Tensor, teacher_ids_NK: Tensor | None) -> dict[str, Tensor]:
        count, block_rows, columns = len(token_N1), len(self.scratch_RW), {}
        for start in range(0, count, block_rows):
            part = slice(start, min(start + block_rows, count))
            for name, values in self._block(part, token_N1, teacher_ids_NK).items():
                if name not in columns:  # at once: small tensors kept between blocks scatter the heap
                    columns[name] = values.new_empty((count, *values.shape[1:]))
                columns[name][part] = values
        lists = {name: snap(values, self.settings.grid) for name, values in columns.items() if name in SNAPPED}
        return columns | lists

    def _block(self, part: slice, token_N1: Tensor, teacher_ids_NK: Tensor | None) -> dict[str, Tensor]:
        token_R1, scratch_RW = token_N1[part], self.scratch_RW[:part.stop - part.start]
        if self.teacher is None:
            return self._student_columns(part, token_R1, teacher_ids_NK[part], scratch_RW)
        teacher_RW, ids_RK = self._top(self.teacher, part, self.settings.teacher_top_k)
        columns = {"teacher_rank": rank(teacher_RW, token_R1, ids_RK, scratch_RW), "teacher_topk_ids": ids_RK.int()}
        asked = {"teacher_log_prob": token_R1, "teacher_topk_log_probs": ids_RK}
        if self.student is not None:
            columns |= self._student_columns(part, token_R1, ids_RK, scratch_RW)
            asked["teacher_log_probs_at_student_topk"] = columns["student_topk_ids"].long()
        return columns | self._distribution("teacher", teacher_RW, asked, ids_RK[:, :1], ids_RK, scratch_RW)

    def _student_columns(self, part: slice, token_R1: Tensor, teacher_ids_RK: Tensor,
                         scratch_RW: Tensor) -> dict[str, Tensor]:
        student_RW, ids_Rk = self._top(self.student, part, self.settings.student_top_k)
        asked = {"student_log_prob": token_R1, "student_topk_log_probs": ids_Rk}
        if self.settings.student_log_probs_at_teacher_topk:
            asked["student_log_probs_at_teacher_topk"] = teacher_ids_RK
        found = self._distribution("student", student_RW, asked, ids_Rk[:, :1], teacher_ids_RK, scratch_RW)
        return {"student_topk_ids": ids_Rk.int()} | found

    def _top(self, side: Side, part: slice, k: int) -> tuple[Tensor, Tensor]:
        logits_RW = side.logits(part)
        return logits_RW, top_k(logits_RW, k)

    def _distribution(self, side: str, logits_RW: Tensor, asked: dict[str, Tensor], largest_R1: Tensor,
                      listed_RK: Tensor, scratch_RW: Tensor) -> dict[str, Tensor]:
        """Columns of one side: log-probs at the ids asked for, entropy, and the tail behind the listed ids."""
        rows = softmax_rows_(logits_RW, torch.cat(list(asked.values()), 1), largest_R1, listed_RK, self.vocabulary,
                             scratch_RW)
        found = dict(zip(asked, rows.log_probs_RJ.split([ids.shape[1] for ids in asked.values()], dim=1)))
        found[f"{side}_log_prob"] = found[f"{side}_log_prob"][:, 0]
        return found | {f"{side}_entropy": rows.entropy_R, f"{side}_log_tail": rows.log_tail_R}


class Side:
    """One model: its trunk, its head, a chunk of projected logits and one block of them as padded float32."""

    def __init__(self, model: nn.Module, vocabulary: int, batch_tokens: int, chunk_rows: int):
        self.trunk, self.head, self.vocabulary = PackedTrunk(model, batch_tokens), output_head(model), vocabulary
        self.chunk_NV, self.block_RW = _buffers(model, self.head.weight_VD, vocabulary, chunk_rows)

    def hidden(self, input_ids_T: Tensor, packing: Packing, hidden_index_R: Tensor) -> Tensor:
        """Hidden states of the rows."""
        return self.trunk(input_ids_T, packing)[hidden_index_R]

    def project(self, hidden_ND: Tensor) -> None:
        self.head.project(hidden_ND, self.vocabulary, out=self.chunk_NV[:len(hidden_ND)])

    def logits(self, part: slice) -> Tensor:
        """Float32 logits of some rows of the chunk, valid until the next call."""
        block_RW = self.block_RW[:part.stop - part.start]
        block_RW[:, self.vocabulary:] = LOWEST
        self.head.finish_(block_RW[:, :self.vocabulary].copy_(self.chunk_NV[part]))
        return block_RW


_BUFFERS: WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor]] = WeakKeyDictionary()


def _buffers(model: nn.Module, weight_VD: Tensor, vocabulary: int, chunk_rows: int) -> tuple[Tensor, Tensor]:
    """(chunk_NV, block_RW) of a model, kept for the next shard: touching fresh memory costs 40 us per row."""
    kept = _BUFFERS.get(model)
    if kept is None or kept[0].shape[1] != vocabulary or len(kept[0]) < chunk_rows:
        width = -(-vocabulary // COLUMNS) * COLUMNS
        kept = (weight_VD.new_empty((chunk_rows, vocabulary), requires_grad=False),
                torch.empty((BLOCK_ROWS[weight_VD.device.type], width), device=weight_VD.device))
        _BUFFERS[model] = kept
    return kept


def _check_sizes(rows: TokenRows, vocabulary: int, settings: Score) -> None:
    for side, k in (("teacher", settings.teacher_top_k), ("student", settings.student_top_k)):
        if k > vocabulary:
            raise UserError(f"score.{side}_top_k = {k} is larger than the {vocabulary} tokens both models share: "
                            "lower it")
    if len(rows) and not 0 <= rows.token_N.min() <= rows.token_N.max() < vocabulary:
        raise UserError(f"rollouts hold token {rows.token_N.max()}, but the models share only ids below {vocabulary}: "
                        "the student wrote a token its teacher does not have; keep it from sampling such ids")


def _check_head(side: str, model: nn.Module, vocabulary: int) -> None:
    rows = len(output_head(model).weight_VD)
    if rows < vocabulary:
        raise UserError(f"the {side}'s head has {rows} rows for a vocabulary of {vocabulary}: this is not its "
                        "tokenizer")
