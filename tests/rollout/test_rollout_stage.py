"""Rollout shards in a real store: what a row says, and that the same work gives the same bytes."""

import dataclasses
import json

import numpy as np
import pytest

from pipeline import stages
from pipeline.config import load_config
from pipeline.context import open_context
from pipeline.models import load_model
from pipeline.prompts.draw import rollout_id
from pipeline.prompts.stage import plan_round
from pipeline.rollout.engine import open_engine
from pipeline.start import start_run
from pipeline.tokens import token_hash
from storage import schemas
from storage.errors import IntegrityError
from storage.rounds import local_checkpoint, starting_checkpoint
from tests.tiny import byte_tokenizer, make_tiny


def begin(folder, *settings):
    """The context of round 0 of a new tiny run, planned, with its prompts."""
    config = load_config(make_tiny(folder), list(settings))
    start_run(config)
    context = open_context(config.store, config.run, 0)
    plan_round(context)
    for shard in context.round.shard_indices("prompts"):
        stages.run_shard(context, "prompts", shard)
    return context


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A context with all rollouts of a round, and its receipts."""
    context = begin(tmp_path_factory.mktemp("run"))
    return context, [stages.run_shard(context, "rollout", shard) for shard in range(4)]


def test_a_shard_has_one_sorted_row_per_sample_in_the_schema(written):
    context, _ = written
    for shard in context.round.plan().shards:
        table = context.round.read("rollout", shard.index)
        assert table.schema.equals(schemas.ROLLOUTS)
        keys = list(zip(table["prompt_id"].to_pylist(), table["rollout_id"].to_pylist()))
        assert keys == sorted((prompt_id, rollout_id(3, 0, prompt_id, sample))
                              for prompt_id in shard.prompt_ids for sample in range(2))
        seeds = {(prompt_id, sample): seed for prompt_id, of_prompt in zip(shard.prompt_ids, shard.rollout_seeds)
                 for sample, seed in enumerate(of_prompt)}
        for row in table.select(["prompt_id", "sample", "seed"]).to_pylist():
            assert row["seed"] == seeds[row["prompt_id"], row["sample"]]


def test_a_row_says_who_wrote_it_how_and_from_what(written):
    context, receipts = written
    prompts = {row["prompt_id"]: row for row in context.round.read("prompts").to_pylist()}
    student = context.document["student_checkpoint"]["fingerprint"]
    for row in context.round.read("rollout").to_pylist():
        for name in ("messages", "ground_truth", "prompt_tokens", "task", "data_source"):
            assert row[name] == prompts[row["prompt_id"]][name]
        n = len(row["response_tokens"])
        assert n == len(row["rollout_log_probs"]) == len(row["sampling_log_probs"]) <= 24
        assert row["turns"] == [{"start": 0, "end": n}]
        assert row["policy_version"] == student and row["engine"].startswith("transformers ")
        assert row["sampling"] == {"temperature": 1.0, "top_p": np.float32(0.9), "max_new_tokens": 24}
        assert row["finish_reason"] == ("stop" if row["response_tokens"][-1] == 2 else "length")
        assert row["token_hash"] == token_hash(np.array(row["prompt_tokens"]), np.array(row["response_tokens"]))
        assert row["response_text"] == byte_tokenizer().decode(row["response_tokens"])
        assert row["reward"] == 0.0
    files = context.document["student_checkpoint"]["files"]
    assert {file["key"]: file["sha256"] for file in files}.items() <= receipts[0].inputs.items()
    assert context.round.input_files("prompts", 0).items() <= receipts[0].inputs.items()


def test_counts_are_facts_of_the_receipt(written):
    context, receipts = written
    rows = context.round.read("rollout", 2).to_pylist()
    assert receipts[2].facts == {
        "rollouts": 4, "response_tokens": sum(len(row["response_tokens"]) for row in rows),
        "truncated": sum(row["finish_reason"] == "length" for row in rows), "graded": 4, "right": 0}


def test_log_probs_are_those_of_the_checkpoint_that_starts_the_round(written):
    import torch

    context, _ = written
    start = starting_checkpoint(context.store, context.run, 0)
    model = load_model(local_checkpoint(context.store, start))
    for row in context.round.read("rollout").slice(0, 6).to_pylist():
        ids = torch.tensor([row["prompt_tokens"] + row["response_tokens"]])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, len(row["prompt_tokens"]) - 1:-1]
        dense = logits.log_softmax(-1)[range(len(row["response_tokens"])), row["response_tokens"]]
        np.testing.assert_allclose(row["rollout_log_probs"], dense, atol=1e-5)


def test_the_same_run_elsewhere_in_another_order_has_the_same_bytes(written, tmp_path):
    _, receipts = written
    context = begin(tmp_path)
    again = {shard: stages.run_shard(context, "rollout", shard) for shard in (3, 1, 0, 2)}
    assert [again[shard].file.sha256 for shard in range(4)] == [receipt.file.sha256 for receipt in receipts]


def test_the_model_stays_loaded_for_the_next_shard(written):
    context, _ = written
    folder = local_checkpoint(context.store, starting_checkpoint(context.store, context.run, 0))
    first = open_engine(context.config.rollout.engine, context.config.student, folder)
    assert open_engine(context.config.rollout.engine, context.config.student, folder) is first


def test_a_right_answer_has_reward_one_and_no_reference_has_none():
    from pipeline.rollout.stage import _reward

    assert (_reward("so #### 7", "7"), _reward("#### 8", "7"), _reward("#### 8", None)) == (1.0, 0.0, None)


def test_rollouts_without_reference_answers_have_no_reward(tmp_path):
    file = tmp_path / "open.jsonl"
    file.write_text("".join(json.dumps({"question": f"Why {n}?"}) + "\n" for n in range(8)))
    config = load_config(make_tiny(tmp_path), [f"prompts.source.path={file}", 'prompts.source.answer=""'])
    start_run(config)
    context = open_context(config.store, config.run, 0)
    plan_round(context)
    stages.run_shard(context, "prompts", 0)
    receipt = stages.run_shard(context, "rollout", 0)
    assert context.round.read("rollout", 0)["reward"].null_count == 4
    assert (receipt.facts["graded"], receipt.facts["right"]) == (0, 0)


def test_a_plan_for_another_student_is_refused(tmp_path):
    config = load_config(make_tiny(tmp_path))
    start_run(config)
    context = open_context(config.store, config.run, 0)
    (tmp_path / "other").mkdir()
    plan = begin(tmp_path / "other").round.plan()
    context.round.put_plan(dataclasses.replace(plan, checkpoint="0" * 64))
    stages.run_shard(context, "prompts", 0)
    with pytest.raises(IntegrityError, match="was planned for checkpoint 000000000000"):
        stages.run_shard(context, "rollout", 0)
