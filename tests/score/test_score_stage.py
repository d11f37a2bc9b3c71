"""The stage over a real store: plan, checkpoint, rollouts of a tiny student, and what can be wrong with them."""

import json
from pathlib import Path

import pytest

from pipeline import provenance, stages
from pipeline.config import RunConfig, apply_settings
from pipeline.context import RoundContext
from pipeline.models import load_model, load_tokenizer, model_facts, vocabulary_agreement
from pipeline.score import stage
from pipeline.score.key import scoring_key, teacher_key
from pipeline.start import versions
from storage import schemas
from storage.checkpoints import weights_fingerprint
from storage.errors import IntegrityError, UserError
from storage.objects import open_store
from storage.rounds import Plan, PlanShard, Round, create_run, put_checkpoint
from tests.score.dense_reference import as_table, dense_log_probs, dense_scores, make_rollouts
from tests.tiny import byte_tokenizer, save_model

LENGTHS = [(4, 12), (6, 3), (5, 9), (3, 20)]


def make_context(folder: Path, **damage) -> RoundContext:
    """A round with two finished rollout shards; `damage` changes columns of the first rollout of shard 0."""
    tokenizer = byte_tokenizer()
    save_model(folder / "student", tokenizer, seed=1, sharpness=4)
    save_model(folder / "teacher", tokenizer, seed=2, sharpness=6, tied=False, vocab=320)
    store = open_store(str(folder / "store"), create=True)
    config = RunConfig.model_validate(apply_settings(
        {"run": "r", "student": {"path": str(folder / "student")}, "teacher": {"path": str(folder / "teacher")},
         "prompts": {"source": {"type": "file", "path": "p.jsonl"}}},
        ["score.teacher_top_k=8", "score.student_top_k=4", "score.student_log_probs_at_teacher_topk=true"]))
    checkpoint = put_checkpoint(store, "r", 0, folder / "student")
    shared = vocabulary_agreement(load_tokenizer(config.student), load_tokenizer(config.teacher)).shared
    document = create_run(store, "r", {
        "config": config.model_dump(mode="json"), "versions": versions(), "student": model_facts(config.student),
        "teacher": model_facts(config.teacher), "vocabulary": {"shared": shared, "warnings": []},
        "student_checkpoint": checkpoint.as_dict()})
    context = RoundContext(store, "r", 0, config, document, Round(store, "r", 0))
    context.round.put_plan(Plan(0, 0, None, checkpoint.fingerprint, [PlanShard(0, [50, 49], []), PlanShard(1, [], [])]))
    for shard in (0, 1):
        rollouts = written_by(folder / "student", make_rollouts(LENGTHS, shared, seed=shard,
                                                                policy_version=checkpoint.fingerprint), shared)
        rollouts[0] |= damage if shard == 0 else {}
        context.round.finish("prompts", shard, "prompts", schemas.PROMPTS.empty_table(), inputs={})
        context.round.finish("rollout", shard, "rollouts", as_table(rollouts), inputs={})
    return context


def written_by(student: Path, rollouts: list[dict], shared: int) -> list[dict]:
    """The same rollouts with the log-probs that an engine would have recorded."""
    model = load_model(student)
    for rollout in rollouts:
        log_p = dense_log_probs(model, rollout, shared)[len(rollout["prompt_tokens"]) - 1:-1]
        own = [float(row[token]) for row, token in zip(log_p, rollout["response_tokens"])]
        rollout |= {"rollout_log_probs": own, "sampling_log_probs": own}
    return rollouts


def nothing_was_scored(context: RoundContext) -> bool:
    return not any("/tokens/" in item.key or "score-" in item.key for item in context.store.list())


def test_a_shard_is_scored_finished_and_equal_to_the_dense_reference(tmp_path):
    context = make_context(tmp_path)
    receipt = stage.run(context, 0)
    table = context.round.read("score", 0)
    full, short = scoring_key(context.document, context.config, context.round.plan().checkpoint)
    assert f"/tokens/scores={short}/" in receipt.file.key
    assert receipt.facts == {"rollouts": 4, "environment_tokens": 3, "scoring_key": full,
                             "teacher_key": teacher_key(context.document, context.config)}
    assert receipt.inputs.keys() >= context.round.input_files("rollout", 0).keys()
    rollouts = make_rollouts(LENGTHS, context.document["vocabulary"]["shared"])
    expected = dense_scores(rollouts, load_model(tmp_path / "student").double(),
                            load_model(tmp_path / "teacher").double(), context.document["vocabulary"]["shared"], 8, 4)
    for ours, theirs in zip(table.to_pylist(), expected, strict=True):
        assert ours["teacher_log_prob"] == pytest.approx(theirs["teacher_log_prob"], abs=1e-4)
        assert ours["student_log_prob"] == pytest.approx(theirs["student_log_prob"], abs=1e-4)
        assert ours["rollout_log_prob"] == pytest.approx(ours["student_log_prob"], abs=1e-4)


def test_models_are_loaded_once_for_all_shards_of_a_process(tmp_path):
    context = make_context(tmp_path)
    stage.run(context, 0)
    before = stage._load_teacher.cache_info().misses, stage._load_student.cache_info().misses
    stage.run(context, 1)
    assert (stage._load_teacher.cache_info().misses, stage._load_student.cache_info().misses) == before


@pytest.mark.parametrize("damage, message", [
    ({"token_hash": "0" * 64}, "do not have its token_hash"),
    ({"response_tokens": [7] * 12}, "do not have its token_hash"),
    ({"policy_version": "e" * 64}, "was written by checkpoint eeeeeeeeeeee"),
    ({"rollout_log_probs": [-90.0] * 12}, "did not write these rollouts")])
def test_rollouts_that_are_not_this_rounds_are_refused_and_nothing_is_written(tmp_path, damage, message):
    context = make_context(tmp_path, **damage)
    with pytest.raises(IntegrityError, match=message):
        stage.run(context, 0)
    assert nothing_was_scored(context)


def test_a_teacher_that_changed_since_the_run_began_is_refused(tmp_path):
    context = make_context(tmp_path)
    save_model(tmp_path / "teacher", byte_tokenizer(), seed=9, tied=False, vocab=320)
    with pytest.raises(UserError, match="is not the one that this run began with"):
        stage.run(context, 0)
    assert nothing_was_scored(context)


def test_a_teacher_with_the_same_weights_and_another_config_is_refused(tmp_path):
    context = make_context(tmp_path)
    file = tmp_path / "teacher" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(config.items()))))  # another order of the keys is the same config
    stage.run(context, 0)
    provenance._check_teacher.cache_clear()
    file.write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(UserError, match=r"not the one that this run began with \(config.json [0-9a-f]{12}, expected"):
        stage.run(context, 1)
    assert context.round.pending("score") == [1]


def test_every_file_of_the_student_but_its_optimizer_is_an_input(tmp_path):
    context = make_context(tmp_path)
    names = {key.rsplit("/", 1)[-1] for key in stage.run(context, 0).inputs if "/checkpoint=0/" in key}
    kept = {file["key"].rsplit("/", 1)[-1] for file in context.document["student_checkpoint"]["files"]}
    assert names == kept >= {"model.safetensors", "config.json", "tokenizer.json"}


def test_a_starting_checkpoint_that_the_plan_does_not_name_is_refused(tmp_path):
    context = make_context(tmp_path)
    document = {**context.document}
    names = {Path(file["key"]).name: file["sha256"] for file in document["student_checkpoint"]["files"]}
    assert weights_fingerprint(names) == context.round.plan().checkpoint
    plan_key = "run=r/round=0/plan.json"
    context.store.delete(plan_key)
    other = Round(context.store, "r", 0)
    other.put_plan(Plan(0, 0, None, "e" * 64, [PlanShard(0, [50, 49], []), PlanShard(1, [], [])]))
    with pytest.raises(IntegrityError, match="was planned for checkpoint eeeeeeeeeeee"):
        stage.run(RoundContext(context.store, "r", 0, context.config, document, other), 0)
    assert nothing_was_scored(context)


def test_a_silent_teacher_stops_the_shard_before_anything_is_written(tmp_path):
    import torch

    context = make_context(tmp_path)
    teacher = load_model(tmp_path / "teacher")
    with torch.no_grad():
        teacher.lm_head.weight.zero_()
    teacher.save_pretrained(tmp_path / "teacher")
    facts = {**context.document, "teacher": model_facts(context.config.teacher)}
    with pytest.raises(UserError, match="silent teacher"):
        stage.run(RoundContext(context.store, "r", 0, context.config, json.loads(json.dumps(facts)), context.round), 0)
    assert nothing_was_scored(context)


def test_shards_finished_after_the_next_were_begun_have_the_same_receipts(tmp_path):
    one_by_one = make_context(tmp_path / "one")
    expected = [stages.run_shard(one_by_one, "score", shard) for shard in (0, 1)]
    context = make_context(tmp_path / "behind")
    finish = [stages.begin_shard(context, "score", shard) for shard in (0, 1)]
    assert nothing_was_scored(context)
    assert [each() for each in finish] == expected
    assert context.round.pending("score") == []


def test_a_receipt_says_why_a_model_was_read_with_padding(tmp_path):
    context = make_context(tmp_path)
    file = tmp_path / "teacher" / "config.json"
    config = json.loads(file.read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    file.write_text(json.dumps(config))
    document = {**context.document, "teacher": json.loads(json.dumps(model_facts(context.config.teacher)))}
    receipt = stage.run(RoundContext(context.store, "r", 0, context.config, document, context.round), 0)
    assert receipt.facts["padded"] == {"teacher": "its rotation is dynamic"}


def test_a_device_without_room_is_one_line_that_says_what_to_lower(tmp_path, monkeypatch):
    import torch

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has a total capacity of")

    context = make_context(tmp_path)
    monkeypatch.setattr(torch.nn.functional, "embedding", full)
    with pytest.raises(UserError, match="score 0: CUDA out of memory. Tried to allocate 9.00 GiB; lower score.batch_"):
        stages.run_shard(context, "score", 0)
    assert nothing_was_scored(context)
