"""The continuation stage on a pair whose words are known: what each model writes from a prefix, how it is graded."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import stages
from pipeline.config import load_config
from pipeline.context import open_context
from pipeline.continuation.plan import continuation_seed
from pipeline.continuation.rows import Asked, GoesOn, _graded
from pipeline.models import load_model, load_tokenizer
from pipeline.prompts.stage import plan_round
from pipeline.start import start_run
from storage import documents, layout, schemas
from storage.errors import OpdError, UserError
from storage.objects import open_store
from storage.rounds import Round
from tests.continuation.bigrams import END, TEACHER, make_bigrams, save_bigrams
from tests.continuation.counting import accuracy_by_depth
from tests.flows.test_run import opd
from tests.tiny import byte_tokenizer, make_tiny

LONGEST = 8


def begin(folder, *settings, unanswered: int = 2):
    """The context of round 0 of a new run with its rollouts."""
    config = load_config(make_bigrams(folder, unanswered), list(settings))
    start_run(config)
    context = open_context(config.store, config.run, 0)
    plan_round(context)
    for stage in ("prompts", "rollout"):
        for shard in context.round.shard_indices(stage):
            stages.run_shard(context, stage, shard)
    return context


def continued(context, order=range(6)):
    return {shard: stages.run_shard(context, "continuation", shard) for shard in order}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A context with a round's continuations, and their receipts by shard."""
    context = begin(tmp_path_factory.mktemp("run"))
    return context, continued(context)


def rows_of(context) -> list[dict]:
    return context.round.read("continuation").to_pylist()


def rollouts_of(context) -> dict[int, dict]:
    return {row["rollout_id"]: row for row in context.round.read("rollout").to_pylist()}


def kept_text(rollout: dict, depth: int) -> str:
    """The prefix as text: in these models' words every token is one character, but for the end."""
    return rollout["response_text"].removesuffix("<|im_end|>")[:depth]


def last_number(text: str) -> str:
    return text.split()[-1] if text.split() else ""


def teachers_words(kept: str, room: int) -> str:
    """What the teacher writes behind `kept`, by hand."""
    if kept.endswith("9"):
        return "9" * room
    return (" 7" + END if kept.endswith("8") else END if kept.endswith("7") else "7" + END)


def test_the_plan_gives_each_model_the_first_prompts_in_the_shards_of_the_plan(written):
    context, _ = written
    plan = context.round.plan()
    first = [shard.prompt_ids for shard in plan.shards]
    parts = [first[0], first[1], first[2][:1]]
    assert [(shard.index, shard.role, shard.prompt_ids) for shard in plan.continuation] == [
        *((i, "student", part) for i, part in enumerate(parts)),
        *((3 + i, "teacher", part) for i, part in enumerate(parts))]


def test_every_place_has_a_row_per_model_and_sample_in_order(written):
    context, receipts = written
    rollouts = rollouts_of(context)
    for planned in context.round.plan().continuation:
        table = context.round.read("continuation", planned.index)
        assert table.schema.equals(schemas.CONTINUATION)
        places = [(row["prompt_id"], row["rollout_id"], row["depth"], row["sample"]) for row in table.to_pylist()]
        chosen = [row for row in rollouts.values() if row["prompt_id"] in planned.prompt_ids and row["sample"] < 2]
        graded = [row for row in chosen if row["ground_truth"] is not None]
        assert places == sorted((row["prompt_id"], row["rollout_id"], depth, sample) for row in graded
                                for depth in (0, 1, 2, 5) if depth <= len(row["response_tokens"]) - 1
                                for sample in (0, 1))
        facts = receipts[planned.index].facts
        assert set(table["role"].to_pylist()) <= {planned.role}
        assert facts["rollouts"] == 2 * len(planned.prompt_ids)
        assert facts["without_reference"] == len(chosen) - len(graded)
        assert facts["too_short"] == 4 * len(graded) - len(places) // 2
    assert all(sum(receipt.facts[name] for receipt in receipts.values()) > 0
               for name in ("without_reference", "too_short"))


def test_the_teacher_goes_on_from_exactly_the_stored_tokens_and_ends_where_it_ends(written):
    context, _ = written
    rollouts, ends = rollouts_of(context), Counter()
    for row in rows_of(context):
        if row["role"] == "teacher":
            kept = kept_text(rollouts[row["rollout_id"]], row["depth"])
            assert row["response_text"] == teachers_words(kept, LONGEST - row["depth"])
            assert row["finish_reason"] == ("stop" if row["response_text"].endswith(END) else "length")
            assert row["response_tokens"] == len(row["response_text"].replace(END, "|"))
            assert row["model"] == context.document["teacher"]["fingerprint"]
            ends[kept[-1:]] += 1
    assert set(ends) == {"", "7", "8", "9", " "}


def test_the_student_goes_on_in_its_own_words(written):
    context, _ = written
    rollouts, first, follows = rollouts_of(context), set(), {"7": " <", "8": " <", "9": " <", " ": "789", "": "789"}
    for row in rows_of(context):
        if row["role"] == "student":
            kept, text = kept_text(rollouts[row["rollout_id"]], row["depth"]), row["response_text"]
            words = kept[-1:] + text.removesuffix("im_end|>")
            assert all(after in follows[before] for before, after in zip(words, words[1:]) if before != "<")
            assert kept or text[0] in "789"
            assert row["finish_reason"] == ("stop" if text.endswith("<|im_end|>") else "length")
            assert row["finish_reason"] == "stop" or len(kept + text) == LONGEST
            assert row["model"] == context.document["student_checkpoint"]["fingerprint"]
            first.add((kept[-1:], text[0]))
    assert first == {("", "7"), ("", "8"), ("", "9"), (" ", "7"), (" ", "8"), (" ", "9"),
                     *((digit, after) for digit in "789" for after in " <")}


def test_verdicts_are_on_prefix_and_continuation_together_and_on_the_whole_rollout(written):
    context, receipts = written
    rollouts, rows = rollouts_of(context), rows_of(context)
    for row in rows:
        rollout = rollouts[row["rollout_id"]]
        text = kept_text(rollout, row["depth"]) + row["response_text"].partition("<")[0]
        assert row["correct"] == (last_number(text) == "7")
        assert row["prefix_correct"] == (last_number(kept_text(rollout, LONGEST)) == "7")
        assert row["verdict_reason"] == ("same number" if row["correct"] else "other number")
    assert {(row["correct"], row["prefix_correct"]) for row in rows} == {(a, b) for a in (True, False)
                                                                        for b in (True, False)}
    for shard, receipt in receipts.items():
        table = context.round.read("continuation", shard).to_pylist()
        assert receipt.facts["continuations"] == len(table)
        assert receipt.facts["right"] == sum(row["correct"] for row in table)
        assert receipt.facts["truncated"] == sum(row["finish_reason"] == "length" for row in table)


def test_accuracy_by_depth_is_what_the_rollouts_tokens_say(written):
    context, _ = written
    counted = accuracy_by_depth(rows_of(context))
    first = {prompt_id for shard in context.round.plan().continuation for prompt_id in shard.prompt_ids}
    for depth in (0, 1, 2, 5):
        kept = [(kept_text(row, depth), last_number(kept_text(row, LONGEST)) == "7")
                for row in rollouts_of(context).values() if row["prompt_id"] in first and row["sample"] < 2
                and row["ground_truth"] is not None and len(row["response_tokens"]) > depth]
        found, lost = counted[depth], sum(text.endswith("9") for text, _ in kept)
        assert found["teacher"]["continuations"] == found["student"]["continuations"] == 2 * len(kept)
        assert found["teacher"]["accuracy"] == 1 - lost / len(kept)
        assert found["teacher"]["wrong_to_right"] == 2 * sum(not text.endswith("9") and not right
                                                             for text, right in kept)
        assert found["teacher"]["right_to_wrong"] == 2 * sum(text.endswith("9") and right for text, right in kept)
        assert found["advantage"] == found["teacher"]["accuracy"] - found["student"]["right"] / (2 * len(kept))
    assert counted[0]["advantage"] > 0 and min(counted[depth]["teacher"]["accuracy"] for depth in counted) < 1


def test_every_continuation_has_a_seed_of_its_own(written):
    context, _ = written
    rows = rows_of(context)
    assert len({row["seed"] for row in rows}) == len(rows)
    for row in rows:
        assert row["seed"] == continuation_seed(3, 0, row["rollout_id"], row["depth"], row["role"], row["sample"])
    assert continuation_seed(3, 0, 5, 8, "teacher", 1) == 665633462333889823


def test_a_receipt_names_the_rollouts_the_checkpoint_and_the_plan(written):
    context, receipts = written
    plan = layout.plan(context.run, 0)
    files = {file["key"]: file["sha256"] for file in context.document["student_checkpoint"]["files"]}
    for shard, receipt in receipts.items():
        assert receipt.inputs == {**files, **context.round.input_files("rollout", shard % 3),
                                  plan: documents.sha256(context.store.get(plan))}


def test_the_same_run_elsewhere_in_another_order_and_resumed_has_the_same_bytes(written, tmp_path):
    first, receipts = written
    context = begin(tmp_path)
    continued(context, (4, 0))
    assert Round(context.store, context.run, 0).pending("continuation") == [1, 2, 3, 5]
    again = continued(open_context(context.store.url, context.run, 0), (5, 4, 3, 2, 1, 0))
    assert [again[shard].file.sha256 for shard in range(6)] == [receipts[shard].file.sha256 for shard in range(6)]
    assert first.round.commit_stage("continuation").receipts == context.round.commit_stage("continuation").receipts


def test_how_many_are_decoded_together_changes_no_row(written, tmp_path):
    context = begin(tmp_path, "rollout.engine.batch_size=3")
    continued(context)
    assert rows_of(context) == rows_of(written[0])


def test_continuation_has_settings_of_its_own(tmp_path):
    context = begin(tmp_path, "continuation.max_new_tokens=3", "continuation.top_p=0.3", "continuation.samples=1")
    continued(context)
    rollouts = rollouts_of(context)
    assert {text[0] for text in (row["response_text"] for row in rollouts.values())} == {"7", "8", "9"}
    for row in rows_of(context):
        kept = kept_text(rollouts[row["rollout_id"]], row["depth"])
        if row["role"] == "teacher":
            assert row["response_text"] == teachers_words(kept, 3)
        else:  # of equally likely digits the nucleus keeps the first, and of space and end the space
            assert row["response_text"] == ("7 7" if kept[-1:] in ("", " ") else " 7 ")


def test_a_run_without_the_section_plans_the_same_round_without_these_shards(written, tmp_path):
    config = load_config(make_bigrams(tmp_path)).model_copy(update={"continuation": None})
    start_run(config)
    context = open_context(config.store, config.run, 0)
    plan_round(context)
    assert context.round.plan() == dataclasses.replace(written[0].round.plan(), continuation=[])
    assert context.round.shard_indices("continuation") == []
    assert context.round.commit_stage("continuation").receipts == {}


def test_other_rounds_than_every_nth_have_no_shards(written):
    from pipeline.continuation.plan import plan_continuation

    config, shards = written[0].config, written[0].round.plan().shards
    assert config.continuation is not None
    third = config.model_copy(update={"continuation": config.continuation.model_copy(update={"every": 3})})
    assert [number for number in range(7) if plan_continuation(third, shards, number)] == [2, 5]


def test_prompts_without_reference_answers_give_a_shard_without_rows(tmp_path):
    context = begin(tmp_path, unanswered=7)
    receipts = continued(context)
    answered = {row["prompt_id"] for row in rollouts_of(context).values() if row["ground_truth"] is not None}
    empty = [shard for shard in context.round.plan().continuation if answered.isdisjoint(shard.prompt_ids)]
    assert len(empty) >= 4
    for shard in empty:
        facts = receipts[shard.index].facts
        assert facts["without_reference"] == facts["rollouts"] > 0 == facts["continuations"] == facts["too_short"]
        assert context.round.read("continuation", shard.index).schema.equals(schemas.CONTINUATION)


def test_what_cannot_give_rows_is_refused_before_the_run_begins(tmp_path):
    file = make_bigrams(tmp_path)
    for settings, said in (
            (["continuation.depths=[1, 0]"], "depths = .1, 0.: name each depth once, the smallest first"),
            (["continuation.depths=[0, 4, 4]"], "name each depth once"), (["continuation.depths=[]"], "depths"),
            (["continuation.depths=[-1]"], "depths"), (["continuation.depth=[1]"], "did you mean continuation.depths"),
            (["continuation.depths=[0, 8]"], "no rollout is longer than 8 tokens, for rollout.max_new_tokens = 8"),
            (["continuation.max_new_tokens=4090"], "the student reads 4096 tokens"),
            (['prompts.source.answer=""'], "no prompt has a reference answer")):
        with pytest.raises(UserError, match=said) as error:
            start_run(load_config(file, settings))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("column, change, said", [
    ("policy_version", lambda value: "0" * 64, "was written by checkpoint 000000000000"),
    ("response_tokens", lambda value: value[:-1] + [50], "do not have its token_hash"),
    ("turns", lambda value: [{"start": 0, "end": 1}, {"start": 1, "end": value[0]["end"]}], "drop .continuation."),
    ("turns", lambda value: [{"start": 1, "end": value[0]["end"]}], "drop .continuation."),
])
def test_rollouts_that_are_not_the_checkpoints_own_words_are_refused(written, tmp_path, column, change, said):
    config = load_config(make_bigrams(tmp_path))
    start_run(config)
    context = open_context(config.store, config.run, 0)
    plan_round(context)
    for shard in range(4):
        stages.run_shard(context, "prompts", shard)
        table = written[0].round.read("rollout", shard)
        place = table.schema.get_field_index(column)
        changed = pa.array([change(value) for value in table[column].to_pylist()], table.schema.field(place).type)
        table = table.set_column(place, table.schema.field(place), changed)
        context.round.finish("rollout", shard, "rollouts", table, inputs={})
    for shard in (0, 3):
        with pytest.raises(OpdError, match=said):
            stages.run_shard(context, "continuation", shard)


def test_another_teacher_than_the_runs_is_refused(tmp_path):
    context, teacher = begin(tmp_path), tmp_path / "teacher"
    shutil.copytree(teacher, tmp_path / "kept")
    save_bigrams(teacher, load_tokenizer(teacher), {**TEACHER, "9": " "})
    with pytest.raises(UserError, match="is not the one that this run began with .weights"):
        stages.run_shard(context, "continuation", 3)
    shutil.rmtree(teacher)
    shutil.copytree(tmp_path / "kept", teacher)
    settings = json.loads((teacher / "generation_config.json").read_text())
    (teacher / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": 60}))
    with pytest.raises(UserError, match="generation_eos_token_id differs"):
        stages.run_shard(context, "continuation", 3)


def test_each_model_is_fed_the_prompt_and_the_prefix_token_by_token(tmp_path):
    """Random weights, greedily: every token so far decides the next one, and a dense pass says which it is."""
    import torch

    config = load_config(make_tiny(tmp_path), ["continuation.depths=[0, 1, 11, 23]", "continuation.top_p=1e-6",
                                               "continuation.prompts=2", "rollout.samples=1"])
    start_run(config)
    context = open_context(config.store, config.run, 0)
    plan_round(context)
    for stage, shards in (("prompts", range(4)), ("rollout", range(4)), ("continuation", range(2))):
        for shard in shards:
            stages.run_shard(context, stage, shard)
    rollouts, tokenizer = rollouts_of(context), byte_tokenizer()
    models, differ = {role: load_model(tmp_path / role) for role in ("student", "teacher")}, 0
    for row in rows_of(context):
        rollout, greedy = rollouts[row["rollout_id"]], {}
        for role, model in models.items():
            ids = rollout["prompt_tokens"] + rollout["response_tokens"][:row["depth"]]
            for _ in range(row["response_tokens"]):
                with torch.no_grad():
                    ids = ids + [int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
            greedy[role] = tokenizer.decode(ids[-row["response_tokens"]:])
        assert row["response_text"] == greedy[row["role"]]
        differ += greedy["student"] != greedy["teacher"]
    assert {row["depth"] for row in rows_of(context)} == {0, 1, 11, 23} and differ >= 8


def test_a_cut_inside_a_character_is_mended_before_it_is_graded(written):
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(r"So \boxed{é}.", add_special_tokens=False)
    depth = len(tokenizer.encode(r"So \boxed{", add_special_tokens=False)) + 1
    rollout = {"rollout_id": 1, "prompt_id": 2, "task": "math", "ground_truth": "é", "response_tokens": ids}
    model = GoesOn("teacher", Path("."), written[0].config.teacher, "x", tokenizer, 259, ())
    row, = _graded(written[0].config, model, [Asked(rollout, depth, 0, 0)], [(ids[depth:], "length")], tokenizer)
    assert row["correct"] and row["prefix_correct"] and row["response_text"] == "\ufffd}."


def test_a_round_with_continuations_commits_and_the_stage_is_a_command(written, tmp_path):
    config = make_bigrams(tmp_path)
    store = ["--store", tmp_path / "store"]
    opd("start", config)
    for stage in ("prompts", "rollout"):
        opd(stage, "--run", "bigrams", "--round", 0, *store)
    asked = ["continuation", "--run", "bigrams", "--round", 0, *store]
    done = json.loads(opd(*asked, "--shard", 4, "--json").stdout)
    assert [shard["shard"] for shard in done["shards"]] == [4] and not done["committed"]
    assert "continuation of round 0: committed" in opd(*asked).stdout
    opd("run", config)
    round = Round(open_store(str(tmp_path / "store")), "bigrams", 0)
    manifest = round.manifest()
    assert manifest is not None and manifest.stages.keys() == set(layout.STAGES)
    assert round.read("continuation").equals(written[0].round.read("continuation"))
    assert "as it was" in opd("verify", *store).stdout
