"""Plans and prompt shards in a real store."""

import json

import pytest

from pipeline import stages
from pipeline.config import load_config
from pipeline.context import open_context
from pipeline.evaluate.problems import check_benchmarks
from pipeline.prompts import pool
from pipeline.prompts.draw import draw_round, rollout_seed
from pipeline.prompts.stage import plan_round, preview_plan
from pipeline.start import start_run
from storage import schemas
from storage.errors import UserError
from storage.objects import store_exists
from tests.tiny import byte_tokenizer, make_tiny, write_problems


def begin(folder, *settings):
    """The config and the context of round 0 of a new tiny run."""
    config = load_config(make_tiny(folder), list(settings))
    start_run(config)
    return config, open_context(config.store, config.run, 0)


def test_a_plan_names_each_shards_prompts_and_seeds_in_order(tmp_path):
    config, context = begin(tmp_path, "prompts.per_shard=3")
    plan = plan_round(context)
    ids = [prompt_id for shard in plan.shards for prompt_id in shard.prompt_ids]
    assert [len(shard.prompt_ids) for shard in plan.shards] == [3, 3, 2]
    assert ids == sorted(draw_round(pool.read_prompts(config.prompts)[0], config.seed, 0, 8))
    assert plan.shards[1].rollout_seeds[2] == [rollout_seed(config.seed, 0, ids[5], sample) for sample in range(2)]
    assert plan.facts == context.document["prompt_pool"] and plan.facts["prompts"] == 64
    assert plan.checkpoint == context.document["student_checkpoint"]["fingerprint"]


def test_a_second_plan_is_the_first_one(tmp_path):
    _, context = begin(tmp_path)
    assert plan_round(context) == plan_round(context) == context.round.plan()


def test_a_preview_shows_the_plan_and_writes_nothing(tmp_path):
    config = load_config(make_tiny(tmp_path))
    preview = preview_plan(config, check_benchmarks(config), 0)
    assert not store_exists(config.store)
    json.dumps(preview)
    start_run(config)
    plan = plan_round(open_context(config.store, config.run, 0))
    assert [shard["prompt_ids"] for shard in preview["shards"]] == [shard.prompt_ids for shard in plan.shards]
    assert [shard["rollout_seeds"] for shard in preview["shards"]] == [shard.rollout_seeds for shard in plan.shards]


def test_a_shard_holds_its_prompts_as_the_student_reads_them(tmp_path):
    _, context = begin(tmp_path)
    plan = plan_round(context)
    receipt = stages.run_shard(context, "prompts", 1)
    table = context.round.read("prompts", 1)
    assert table.schema.equals(schemas.PROMPTS)
    assert table["prompt_id"].to_pylist() == plan.shards[1].prompt_ids
    for row in table.to_pylist():
        messages = json.loads(row["messages"])
        assert row["task"] == "math" and row["data_source"] == "problems"
        assert messages == [{"role": "user", "content": f"What is {row['source_row']} + {2 * row['source_row']}?"}]
        assert row["ground_truth"] == str(3 * row["source_row"])
        assert byte_tokenizer().decode(row["prompt_tokens"]).endswith("<|im_start|>assistant\n")
    assert receipt.facts == {"prompts": 2, "prompt_tokens": sum(map(len, table["prompt_tokens"].to_pylist()))}


def test_the_solution_comes_along_where_it_is_configured(tmp_path):
    _, context = begin(tmp_path, "prompts.source.solution=answer")
    plan_round(context)
    stages.run_shard(context, "prompts", 0)
    assert all(each.startswith("The sum.\n#### ") for each in context.round.read("prompts", 0)["solution"].to_pylist())


def test_a_source_that_changed_under_a_run_stops_the_plan_and_the_shard(tmp_path):
    config, context = begin(tmp_path)
    plan_round(context)
    write_problems(tmp_path / "problems.jsonl", 3)
    pool._read_prompts.cache_clear()  # as in a new process
    with pytest.raises(UserError, match="prompts.source changed since the run began: it gives 3 prompts"):
        plan_round(open_context(config.store, config.run, 0))
    with pytest.raises(UserError, match="prompts.source changed since round 0 was planned"):
        stages.run_shard(context, "prompts", 0)
