"""Rollouts that are not this round's, or not what was written, are refused by name."""

import dataclasses

import pyarrow as pa
import pytest

from pipeline.config import load_config
from pipeline.context import open_context
from pipeline.prompts.stage import plan_round
from pipeline.provenance import check_tokens, check_writer, planned_checkpoint
from pipeline.start import start_run
from storage.errors import IntegrityError
from storage.rounds import starting_checkpoint
from tests.tiny import make_tiny
from tests.train.tables import rollouts_table


def changed(table: pa.Table, column: str, row: int, value) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    field = table.schema.field(column)
    return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))


def test_tokens_and_writers_that_agree_pass_in_any_chunks():
    rollouts = pa.concat_tables([rollouts_table(3, 1, 48), rollouts_table(4, 2, 48).slice(1)])
    check_tokens(rollouts, "here")
    check_writer(rollouts, "p" * 64, "here")
    check_tokens(rollouts.slice(0, 0), "here")


@pytest.mark.parametrize("column, value", [("token_hash", "0" * 64), ("prompt_tokens", [1, 2]),
                                           ("response_tokens", [3])])
def test_a_rollout_whose_tokens_do_not_have_its_hash_is_named(column, value):
    rollouts = rollouts_table(4, 1, 48)
    with pytest.raises(IntegrityError, match=f"here: the tokens of rollout {rollouts['rollout_id'][2]} do not have"):
        check_tokens(changed(rollouts, column, 2, value), "here")


def test_a_rollout_of_another_checkpoint_is_refused_naming_both():
    rollouts = changed(rollouts_table(4, 1, 48), "policy_version", 3, "e" * 64)
    with pytest.raises(IntegrityError, match="here: .* written by checkpoint eeeeeeeeeeee, not by pppppppppppp"):
        check_writer(rollouts, "p" * 64, "here")


def test_the_planned_checkpoint_is_the_starting_one_or_the_round_is_stale(tmp_path):
    config = load_config(make_tiny(tmp_path))
    start_run(config)
    context = open_context(config.store, config.run, 0)
    plan_round(context)
    assert planned_checkpoint(context) == starting_checkpoint(context.store, context.run, 0)
    plan = context.round.plan()
    context.store.delete("run=tiny/round=0/plan.json")
    again = open_context(config.store, config.run, 0)
    again.round.put_plan(dataclasses.replace(plan, checkpoint="e" * 64))
    with pytest.raises(IntegrityError, match="round 0 of tiny was planned for checkpoint eeeeeeeeeeee") as caught:
        planned_checkpoint(again)
    assert caught.value.kind == "stale"
