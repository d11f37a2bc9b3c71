"""A round's rollouts, scores and masks as tensors: what the trainer reads.

Promises:
- only files that a receipt names are read (`Round.read`), with their hashes checked.
- tables are joined by row order, after every (rollout_id, position, token_id) was compared; the token hash of every
  rollout is computed again from the tokens that are trained on. Numbers never attach to other tokens.
- a NaN among scores or weights is refused: an objective that drops such a token would hide a broken teacher.
- no Python object per token: columns go from Arrow to torch as they lie.

Shapes: R rollouts, N student-written tokens (rows of `tokens`), L tokens of all sequences one after the other,
B rollouts and T tokens of a forward pass, M of its rows, K teacher and k student entries.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from pipeline.objectives import TokenBatch
from pipeline.provenance import check_tokens, check_writer
from pipeline.ragged import Ragged, Spans, ranges, starts_of
from pipeline.score.by_vllm.unknown import stand_in
from pipeline.train.batches import MicroBatch
from storage.codec import columns_to_torch
from storage.errors import IntegrityError, UserError
from storage.rounds import Round

ROLLOUT_COLUMNS = ("rollout_id", "prompt_tokens", "response_tokens", "turns", "policy_version", "token_hash")
BATCH_COLUMNS = {
    "token_ids_N": "token_id", "teacher_log_prob_N": "teacher_log_prob", "student_log_prob_N": "student_log_prob",
    "sampling_log_prob_N": "sampling_log_prob", "teacher_log_tail_N": "teacher_log_tail",
    "student_log_tail_N": "student_log_tail", "teacher_topk_ids_NK": "teacher_topk_ids",
    "teacher_topk_log_probs_NK": "teacher_topk_log_probs", "student_topk_ids_Nk": "student_topk_ids",
    "student_topk_log_probs_Nk": "student_topk_log_probs",
    "teacher_at_student_Nk": "teacher_log_probs_at_student_topk",
}
"""Field of TokenBatch: column of `tokens`."""
TOKEN_COLUMNS = ("rollout_id", "position", *BATCH_COLUMNS.values())
MASK_COLUMNS = ("rollout_id", "position", "weight")


@dataclass(frozen=True)
class RoundTokens:
    """Every rollout of a round with its scores; ids are int32 and log-probs float32, as stored."""

    rollout_id_R: np.ndarray
    prompt_length_R: np.ndarray
    token_L: torch.Tensor
    sequence_start_R: np.ndarray
    """Where a rollout's prompt begins in `token_L`; its response follows."""
    sequence_length_R: np.ndarray
    row_start_R: np.ndarray
    row_count_R: np.ndarray
    position_N: np.ndarray
    weight_N: torch.Tensor
    columns: dict[str, torch.Tensor]

    def rows(self, rollouts_B: np.ndarray) -> np.ndarray:
        """Rows of these rollouts, in their order."""
        return ranges(self.row_start_R[rollouts_B], self.row_count_R[rollouts_B])

    def rollout_of_rows(self) -> np.ndarray:
        """Index of the rollout of every row."""
        return np.repeat(np.arange(len(self.rollout_id_R)), self.row_count_R)

    def predicted_from(self) -> np.ndarray:
        """Index, in its own sequence, of the hidden state that predicts each row's token.

        Response token t is token prompt_length + t of the sequence, predicted from the one before.
        """
        return self.prompt_length_R[self.rollout_of_rows()] + self.position_N - 1

    def input_ids(self, batch: MicroBatch) -> torch.Tensor:
        """input_ids_BT, padded with 0 on the right: no token that counts ever sees padding. One row if packed; one
        token of padding if there is no rollout."""
        if batch.packed_B is not None:
            return self.token_L[torch.from_numpy(ranges(self.sequence_start_R[batch.rollouts_B],
                                                        batch.packed_B))][None].long()
        length_B = np.minimum(self.sequence_length_R[batch.rollouts_B], batch.width)
        input_ids_BT = torch.zeros(max(1, len(batch.rollouts_B)), batch.width, dtype=torch.long)
        into = ranges(np.arange(len(length_B)) * batch.width, length_B)
        out_of = ranges(self.sequence_start_R[batch.rollouts_B], length_B)
        input_ids_BT.view(-1)[torch.from_numpy(into)] = self.token_L[torch.from_numpy(out_of)].long()
        return input_ids_BT

    def batch(self, rows_M: np.ndarray, rollout_M: np.ndarray) -> TokenBatch:
        """The scores of `rows_M`; `rollout_M` numbers their rollouts within the forward pass."""
        index = torch.from_numpy(rows_M)
        columns = {field: _wide(self.columns[column][index]) for field, column in BATCH_COLUMNS.items()}
        return TokenBatch(**columns, weight_N=self.weight_N[index], rollout_N=torch.from_numpy(rollout_M),
                          position_N=torch.from_numpy(self.position_N[rows_M]).long())


def read_round(round: Round, policy_version: str) -> RoundTokens:
    """Read all shards of a round that `policy_version` wrote. Raises IntegrityError if tables do not fit together."""
    parts = []
    for receipt in round.receipts("score"):
        shard = receipt.shard
        rollouts = round.read("rollout", shard, ROLLOUT_COLUMNS)
        where = f"round {round.number} of {round.run}, shard {shard}"
        check_writer(rollouts, policy_version, where)
        parts.append(join(rollouts, round.read("score", shard, TOKEN_COLUMNS),
                          round.read("mask", shard, MASK_COLUMNS), where))
    return concatenate(parts)


def join(rollouts: pa.Table, tokens: pa.Table, mask: pa.Table, where: str) -> RoundTokens:
    """Join the three tables of one shard by row order, refusing any row that is not the other tables' row."""
    rollout_id_R = _numpy(rollouts, "rollout_id")
    check_tokens(rollouts, where)
    prompts, responses = Ragged.of(rollouts["prompt_tokens"]), Ragged.of(rollouts["response_tokens"])
    turns = Spans.of(rollouts["turns"])
    if turns.misfits(responses.lengths).any():
        raise IntegrityError(f"{where}: turns are not ordered spans of their responses; run `opd verify`")
    owner_N, position_N = turns.positions()
    row_count_R = np.bincount(owner_N, minlength=len(rollouts))
    rollout_id_N = rollout_id_R[owner_N]
    for name, table in (("tokens", tokens), ("mask", mask)):
        _same(_numpy(table, "rollout_id"), rollout_id_N, f"rollout_id of {name}", where)
        _same(_numpy(table, "position"), position_N, f"position of {name}", where)
    sampled_N = responses.values[responses.starts[owner_N] + position_N]
    _same(_numpy(tokens, "token_id"), sampled_N, "token_id of tokens", where)
    columns = columns_to_torch(stand_in(tokens), BATCH_COLUMNS.values())
    weight_N = columns_to_torch(mask, ["weight"])["weight"]
    for name, column in {**columns, "weight": weight_N}.items():
        _check_no_nan(name, column, rollout_id_N, position_N, where)
    token_L, sequence_length_R = _sequences(prompts, responses)
    return RoundTokens(rollout_id_R, prompts.lengths, token_L, starts_of(sequence_length_R), sequence_length_R,
                       starts_of(row_count_R), row_count_R, position_N, weight_N, columns)


def check_rows(name: str, table: pa.Table, rollout_id_N: np.ndarray, position_N: np.ndarray, where: str) -> None:
    """Raise IntegrityError unless every row of `table` is of the rollout and position that the rollouts have there."""
    _same(_numpy(table, "rollout_id"), rollout_id_N, f"rollout_id of {name}", where)
    _same(_numpy(table, "position"), position_N, f"position of {name}", where)


def concatenate(parts: list[RoundTokens]) -> RoundTokens:
    """The rollouts of all `parts`, in order."""
    def stack(name):
        return np.concatenate([getattr(part, name) for part in parts])

    row_count_R, sequence_length_R = stack("row_count_R"), stack("sequence_length_R")
    columns = {name: torch.cat([part.columns[name] for part in parts]) for name in BATCH_COLUMNS.values()}
    return RoundTokens(
        stack("rollout_id_R"), stack("prompt_length_R"), torch.cat([part.token_L for part in parts]),
        starts_of(sequence_length_R), sequence_length_R, starts_of(row_count_R), row_count_R, stack("position_N"),
        torch.cat([part.weight_N for part in parts]), columns)


def _wide(column: torch.Tensor) -> torch.Tensor:
    return column if column.is_floating_point() else column.long()


def _numpy(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).combine_chunks().to_numpy(zero_copy_only=True)


def _sequences(prompts: Ragged, responses: Ragged) -> tuple[torch.Tensor, np.ndarray]:
    """(token_L, lengths): every prompt followed by its response."""
    length_R = prompts.lengths + responses.lengths
    token_L = np.empty(length_R.sum(), dtype=np.int32)
    token_L[ranges(starts_of(length_R), prompts.lengths)] = prompts.values
    token_L[ranges(starts_of(length_R) + prompts.lengths, responses.lengths)] = responses.values
    return torch.from_numpy(token_L), length_R


def _same(found: np.ndarray, expected: np.ndarray, what: str, where: str) -> None:
    if len(found) != len(expected):
        raise IntegrityError(f"{where}: {what} has {len(found)} rows where the rollouts have {len(expected)} tokens; "
                             "run `opd verify`")
    differing = np.flatnonzero(found != expected)
    if len(differing):
        row = differing[0]
        raise IntegrityError(f"{where}: {what} is {found[row]} in row {row} where the rollouts say {expected[row]}; "
                             "run `opd verify`")


def _check_no_nan(name: str, column: torch.Tensor, rollout_id_N: np.ndarray, position_N: np.ndarray,
                  where: str) -> None:
    if not column.is_floating_point() or not column.numel() or not column.amax().isnan():  # a maximum passes NaN on
        return
    row = int(column.isnan().view(len(column), -1).any(1).nonzero()[0])
    raise UserError(f"{where}: {name} is NaN at rollout {rollout_id_N[row]}, position {position_N[row]}: find out "
                    "what the model or the mask did there before training on it")
