"""The teacher as it is run here: the files that run.json recorded, checked, and the trunk over batches of rollouts.

Shapes: N rows of `tokens`, R rows of a batch, D model width, B bytes.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from pipeline.config.model import Model
from pipeline.context import RoundContext
from pipeline.hidden import coding
from pipeline.kept import kept
from pipeline.models import device, load_model, output_head
from pipeline.provenance import teacher_model
from pipeline.score.packed import PackedTrunk
from pipeline.score.packed_attention import Packing
from pipeline.score.rows import TokenRows
from storage import schemas
from storage.errors import UserError


def checked_teacher(context: RoundContext) -> torch.nn.Module:
    """The run's teacher, on the device. Raises UserError if its files are not those that run.json records, or if its
    head has fewer rows than ids are shared."""
    vocabulary, teacher = context.document["vocabulary"]["shared"], _load(teacher_model(context))
    if len(output_head(teacher).weight_VD) < vocabulary:
        raise UserError(f"the teacher's head has {len(output_head(teacher).weight_VD)} rows for a vocabulary of "
                        f"{vocabulary}: this is not its tokenizer")
    return teacher


@kept
def _load(model: Model) -> torch.nn.Module:
    """Kept for the next shard of this process."""
    return load_model(model, device=device())


def hidden_table(rollouts: pa.Table, teacher: torch.nn.Module, dtype: str, batch_tokens: int,
                 progress: Callable[[str, int, int], None] = lambda what, done, total: None) -> pa.Table:
    """A table of schemas.hidden for every token that the student wrote, in the order of `tokens`.

    Raises UserError for hidden states that are NaN or infinite.
    """
    rows, forward = TokenRows(rollouts), PackedTrunk(teacher, batch_tokens)
    width = output_head(teacher).weight_VD.shape[1]
    stored_NB = np.empty((len(rows), coding.stored_bytes(dtype, width)), dtype=np.uint8)
    scale_N, done = np.ones(len(rows), dtype=np.float32), 0
    for batch in rows.batches(batch_tokens):
        with torch.inference_mode():
            input_ids_T, index_R = (torch.from_numpy(each).to(teacher.device)
                                    for each in (batch.input_ids_T, batch.hidden_index_R))
            hidden_RD = forward(input_ids_T, Packing(batch.segments, teacher.device))[index_R]
            _check_finite(hidden_RD)
            stored_NB[batch.row_R], scale_N[batch.row_R] = coding.encode(hidden_RD, dtype)
        done += len(batch.row_R)
        progress("hidden", done, len(rows))
    return _table(rows, scale_N, stored_NB)


def _check_finite(hidden_RD: torch.Tensor) -> None:
    broken_R = ~hidden_RD.isfinite().all(1)
    if broken_R.any():
        raise UserError(f"the teacher's hidden states are NaN or infinite on {int(broken_R.sum())} of {len(broken_R)} "
                        "tokens: check its weights, or run it with teacher.dtype = 'float32'")


def _table(rows: TokenRows, scale_N: np.ndarray, stored_NB: np.ndarray) -> pa.Table:
    schema = schemas.hidden(stored_NB.shape[1])
    stored = pa.FixedSizeBinaryArray.from_buffers(schema.field("hidden").type, len(rows),
                                                  [None, pa.py_buffer(stored_NB)])
    position = pa.array(rows.position_N.astype(np.int32))
    return pa.Table.from_arrays([rows.per_rollout("rollout_id"), position, pa.array(scale_N), stored], schema=schema)
