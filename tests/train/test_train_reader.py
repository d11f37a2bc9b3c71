"""The reader attaches every number to its own token, or refuses."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from pipeline.train.batches import MicroBatch
from pipeline.train.reader import BATCH_COLUMNS, concatenate, join
from storage.errors import IntegrityError, UserError
from tests.train.tables import made_up_round, mask_table, rollouts_table, tiny_model, tokens_table


@pytest.fixture(scope="module")
def tables():
    return made_up_round(6)


def replaced(table: pa.Table, column: str, row: int, value) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(table.schema.get_field_index(column), table.schema.field(column),
                            pa.array(values, table.schema.field(column).type))


def test_rows_sequences_and_hidden_positions_are_those_of_a_loop_over_rollouts(tables):
    data = join(*tables, "here")
    row = 0
    for i, rollout in enumerate(tables[0].to_pylist()):
        whole = rollout["prompt_tokens"] + rollout["response_tokens"]
        start = data.sequence_start_R[i]
        assert data.token_L[start:start + data.sequence_length_R[i]].tolist() == whole
        for t, token in enumerate(rollout["response_tokens"]):
            assert data.columns["token_id"][row] == token
            assert whole[data.predicted_from()[row] + 1] == token and data.position_N[row] == t
            row += 1
    assert row == len(data.position_N)


def test_a_batch_holds_the_stored_values_in_the_fields_of_the_objectives(tables):
    data = join(*tables, "here")
    rows = np.array([3, 1])
    batch = data.batch(rows, np.array([0, 0]))
    for field, column in BATCH_COLUMNS.items():
        expected = tables[1][column].take(pa.array(rows)).to_pylist()
        np.testing.assert_array_equal(getattr(batch, field).numpy(), np.array(expected, dtype=np.float32)
                                      if getattr(batch, field).is_floating_point() else expected)
    assert batch.token_ids_N.dtype == batch.teacher_topk_ids_NK.dtype == torch.int64
    assert batch.weight_N.tolist() == tables[2]["weight"].take(pa.array(rows)).to_pylist()


def test_input_ids_are_padded_right_and_cut_to_the_width(tables):
    data = join(*tables, "here")
    longest = int(data.sequence_length_R.max())
    ids = data.input_ids(MicroBatch(np.array([2, 0]), longest))
    for row, i in enumerate((2, 0)):
        rollout = tables[0].slice(i, 1).to_pylist()[0]
        whole = rollout["prompt_tokens"] + rollout["response_tokens"]
        assert ids[row].tolist() == whole + [0] * (longest - len(whole))
    assert data.input_ids(MicroBatch(np.array([2]), 3)).shape == (1, 3)


def test_shards_read_apart_and_joined_are_the_round_read_at_once():
    student, teacher = tiny_model(1), tiny_model(2)
    shards = [rollouts_table(count, seed, 48) for count, seed in ((3, 1), (2, 2))]

    def read(rollouts):
        tokens = tokens_table(rollouts, student, teacher)
        return join(rollouts, tokens, mask_table(tokens, 0, masked=0.0), "here")

    apart, whole = concatenate([read(shard) for shard in shards]), read(pa.concat_tables(shards))
    for name, value in vars(whole).items():
        if name != "columns":
            np.testing.assert_array_equal(getattr(apart, name), value, err_msg=name)
    for name, value in whole.columns.items():
        assert torch.equal(apart.columns[name], value), name


def test_tokens_of_an_environment_have_no_row_and_are_still_read_as_context():
    rollouts = rollouts_table(3, 5, 48, longest=10)
    lengths = [len(tokens) for tokens in rollouts["response_tokens"].to_pylist()]
    turns = [[{"start": 0, "end": 1}, {"start": min(3, n), "end": n}] for n in lengths]
    index = rollouts.schema.get_field_index("turns")
    rollouts = rollouts.set_column(index, rollouts.schema.field(index), pa.array(turns, rollouts.schema[index].type))
    tokens = tokens_table(rollouts, tiny_model(1), tiny_model(2))
    data = join(rollouts, tokens, mask_table(tokens, 0), "here")
    assert data.row_count_R.tolist() == [1 + n - min(3, n) for n in lengths]
    assert data.sequence_length_R.sum() == sum(lengths) + pc.sum(pc.list_value_length(
        rollouts["prompt_tokens"])).as_py()


@pytest.mark.parametrize("table, column, value, said", [
    (1, "rollout_id", 7, "rollout_id of tokens is 7 in row 2"), (1, "position", 40, "position of tokens is 40"),
    (1, "token_id", 0, "token_id of tokens is 0 in row 2"), (2, "rollout_id", 7, "rollout_id of mask is 7"),
    (2, "position", 40, "position of mask is 40"), (0, "token_hash", "0" * 64, "do not have its token_hash")])
def test_a_row_that_belongs_to_other_tokens_is_refused_by_name(tables, table, column, value, said):
    changed = list(tables)
    changed[table] = replaced(tables[table], column, 2, value)
    with pytest.raises(IntegrityError, match=said):
        join(*changed, "here")


def test_a_turn_that_ends_behind_its_response_is_refused(tables):
    changed = replaced(tables[0], "turns", 1, [{"start": 0, "end": len(tables[0]["response_tokens"][1]) + 1}])
    with pytest.raises(IntegrityError, match="turns are not ordered spans"):
        join(changed, *tables[1:], "here")


def test_missing_rows_are_refused(tables):
    rollouts, tokens, mask = tables
    with pytest.raises(IntegrityError, match="rollout_id of tokens has"):
        join(rollouts, tokens.slice(1), mask, "here")
    with pytest.raises(IntegrityError, match="rollout_id of mask has"):
        join(rollouts, tokens, mask.slice(0, len(mask) - 1), "here")


def test_a_changed_prompt_is_refused_by_the_token_hash(tables):
    prompt = tables[0]["prompt_tokens"][0].as_py()
    changed = replaced(tables[0], "prompt_tokens", 0, [prompt[0] + 1, *prompt[1:]])
    with pytest.raises(IntegrityError, match="do not have its token_hash"):
        join(changed, *tables[1:], "here")


@pytest.mark.parametrize("table, column, value", [
    (1, "teacher_log_prob", math.nan), (1, "teacher_topk_log_probs", [-0.1, math.nan, -2.0, -3.0, -4.0, -5.0]),
    (2, "weight", math.nan)])
def test_a_nan_is_refused_naming_column_rollout_and_position(tables, table, column, value):
    changed = list(tables)
    changed[table] = replaced(tables[table], column, 3, value)
    row = tables[1].slice(3, 1).to_pylist()[0]
    with pytest.raises(UserError, match=f"{column} is NaN at rollout {row['rollout_id']}, position {row['position']}"):
        join(*changed, "here")
