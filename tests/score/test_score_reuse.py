"""Payloads of a committed round, used again: by the same tokens, another K, another student, from a damaged store."""

import copy
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.config import RunConfig, apply_settings
from pipeline.context import RoundContext
from pipeline.models import load_model, load_tokenizer, model_facts, vocabulary_agreement
from pipeline.score import stage
from pipeline.score.key import teacher_key
from pipeline.score.payload import TEACHER_COLUMNS
from pipeline.score.reuse import find_payloads
from pipeline.score.scorer import score_reusing, score_rollouts
from pipeline.start import versions
from storage import layout, schemas
from storage.codec import fixed_lists_to_numpy
from storage.objects import open_store
from storage.rounds import Plan, PlanShard, Round, create_run, put_checkpoint
from tests.made_rounds import mask, steps
from tests.score.dense_reference import as_table, make_rollouts
from tests.score.test_score_stage import written_by
from tests.tiny import byte_tokenizer, save_model

LENGTHS = [(4, 12), (6, 3), (5, 9), (3, 20), (7, 1), (4, 0)]
"""Of both shards: the last rollout has no token and so no row."""
WITH_ROWS = 5
K, k = 16, 4
STUDENT_COLUMNS = ("student_log_prob", "student_entropy", "student_log_tail", "student_topk_ids",
                   "student_topk_log_probs", "student_log_probs_at_teacher_topk")


class World:
    """A folder with two models and a store whose run `source` has a committed round of two shards."""

    def __init__(self, folder: Path):
        self.folder = folder
        tokenizer = byte_tokenizer()
        save_model(folder / "student", tokenizer, seed=1, sharpness=4)
        save_model(folder / "teacher", tokenizer, seed=2, sharpness=6, tied=False, vocab=320)
        self.store = open_store(str(folder / "store"), create=True)
        config = self.config("source")
        self.checkpoint = put_checkpoint(self.store, "source", 0, folder / "student")
        self.shared = vocabulary_agreement(load_tokenizer(config.student), load_tokenizer(config.teacher)).shared
        self.facts = {"versions": versions(), "student": model_facts(config.student),
                      "teacher": model_facts(config.teacher), "vocabulary": {"shared": self.shared, "warnings": []},
                      "student_checkpoint": self.checkpoint.as_dict()}
        self.rollouts = [self.written(seed=1), self.written(seed=2)]
        self.source = self.scored("source")
        self.manifest = commit(self.source)

    def config(self, run: str, *settings: str) -> RunConfig:
        return RunConfig.model_validate(apply_settings(
            {"run": run, "student": {"path": str(self.folder / "student")},
             "teacher": {"path": str(self.folder / "teacher")},
             "prompts": {"source": {"type": "file", "path": "p.jsonl"}}},
            [f"score.teacher_top_k={K}", f"score.student_top_k={k}", "score.student_log_probs_at_teacher_topk=true",
             *settings]))

    def written(self, seed: int) -> list[dict]:
        """Rollouts that are this seed's own: prompts, ids and tokens."""
        rollouts = make_rollouts(LENGTHS, self.shared, seed=seed, policy_version=self.checkpoint.fingerprint)
        for each in rollouts:
            each |= {"rollout_id": each["rollout_id"] + 10_000 * seed, "prompt_id": each["prompt_id"] + 100 * seed}
        return written_by(self.folder / "student", rollouts, self.shared)

    def begin(self, run: str, *settings: str, shards: list[list[dict]] | None = None, store=None) -> RoundContext:
        """A round with finished rollouts and no scores."""
        shards, store, config = shards or self.rollouts, store or self.store, self.config(run, *settings)
        document = create_run(store, run, copy.deepcopy(self.facts) | {"config": config.model_dump(mode="json")})
        context = RoundContext(store, run, 0, config, document, Round(store, run, 0))
        context.round.put_plan(Plan(0, 0, None, self.checkpoint.fingerprint, [
            PlanShard(index, sorted({each["prompt_id"] for each in rollouts}), [])
            for index, rollouts in enumerate(shards)]))
        for index, rollouts in enumerate(shards):
            context.round.finish("prompts", index, "prompts", schemas.PROMPTS.empty_table(), inputs={})
            context.round.finish("rollout", index, "rollouts", as_table(rollouts), inputs={})
        return context

    def scored(self, run: str, *settings: str, **options) -> RoundContext:
        context = self.begin(run, *settings, **options)
        for shard in context.round.shard_indices("score"):
            context.notes.clear()
            stage.run(context, shard)
        return context

    def without_teacher(self, run: str, *settings: str, **options) -> RoundContext:
        """Scored with the teacher's folder gone."""
        return self.scored(run, f"teacher.path={self.folder / 'nowhere'}", "score.reuse=true", *settings, **options)


def commit(context: RoundContext) -> str:
    """Finish the round by hand; returns its manifest id."""
    round = context.round
    for shard in round.shard_indices("mask"):
        round.finish("mask", shard, "mask", mask(round.read("score", shard)), inputs={})
    trained = put_checkpoint(context.store, context.run, 1, Path(context.config.student.path))
    round.finish("train", 0, "steps", steps(), inputs={}, checkpoint=trained)
    for name in layout.STAGES:
        round.commit_stage(name)
    return round.commit().id


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("reuse"))


@pytest.fixture
def copied(world, tmp_path) -> World:
    """The same with a store that may be damaged."""
    other = copy.copy(world)
    shutil.copytree(world.folder / "store", tmp_path / "store")
    other.store = open_store(str(tmp_path / "store"))
    return other


def counted(table: pa.Table) -> dict[str, int]:
    """Rollouts with and without a payload, from the rows alone."""
    marked = {(row["rollout_id"], row["reused_from"] is not None) for row in
              table.select(["rollout_id", "reused_from"]).to_pylist()}
    assert len(marked) == len({rollout_id for rollout_id, _ in marked}), "a rollout is reused as a whole or not at all"
    return {"reused": sum(reused for _, reused in marked), "scored": sum(not reused for _, reused in marked)}


def counts_of(context: RoundContext, shard: int) -> dict[str, int]:
    """What the receipt says, which must be what the rows say."""
    facts = context.round.receipt("score", shard).facts
    assert counted(context.round.read("score", shard)) == {name: facts[name] for name in ("reused", "scored")}
    return {name: facts[name] for name in ("reused", "scored", "cut")}


def same(first: pa.Table, second: pa.Table, names) -> bool:
    """Bit for bit."""
    return all(first[name].combine_chunks().equals(second[name].combine_chunks()) for name in names)


def numbers(table: pa.Table, name: str) -> np.ndarray:
    column = table[name]
    return fixed_lists_to_numpy(column) if pa.types.is_fixed_size_list(column.type) else column.to_numpy()


def models(world: World):
    return load_model(world.folder / "student"), load_model(world.folder / "teacher")


def test_scored_again_the_teacher_is_not_even_loaded_and_only_the_mark_differs(world):
    context = world.without_teacher("again")
    for shard in (0, 1):
        before, after = (each.round.read("score", shard) for each in (world.source, context))
        assert same(before, after, [name for name in before.column_names if name != "reused_from"])
        assert set(after["reused_from"].to_pylist()) == {world.manifest}
        assert counts_of(context, shard) == {"reused": WITH_ROWS, "scored": 0, "cut": 0}
        file = world.source.round.receipt("score", shard).file
        assert context.round.receipt("score", shard).inputs[file.key] == file.sha256
    assert context.notes == {"reused": WITH_ROWS, "scored": 0, "cut": 0}


def test_a_smaller_k_is_a_cut_whose_tail_is_off_by_less_than_half_a_grid_step(world):
    context = world.without_teacher("cut", "score.teacher_top_k=6", "score.student_top_k=3")
    for shard in (0, 1):
        source, found = (each.round.read("score", shard) for each in (world.source, context))
        fresh = score_rollouts(as_table(world.rollouts[shard]), *models(world), world.shared, context.config.score)
        teachers = [name for name in TEACHER_COLUMNS if name != "teacher_log_tail"]
        assert same(found, fresh, [*teachers, *STUDENT_COLUMNS, "teacher_log_probs_at_student_topk", "position"])
        assert same(found, source, ["teacher_log_prob", "teacher_rank", "teacher_entropy", "token_id"])
        tail, dropped = numbers(source, "teacher_log_tail"), numbers(source, "teacher_topk_log_probs")[:, 6:]
        for row, log_tail in enumerate(numbers(found, "teacher_log_tail").tolist()):
            mass = math.exp(tail[row]) + sum(math.exp(each) for each in dropped[row].tolist())
            assert log_tail == pytest.approx(math.log(mass), abs=1e-6)
        error = np.abs(numbers(found, "teacher_log_tail") - numbers(fresh, "teacher_log_tail"))
        assert 1e-4 < error.max() < 1 / 64
        assert counts_of(context, shard) == {"reused": WITH_ROWS, "scored": 0, "cut": WITH_ROWS}


@pytest.mark.parametrize("setting", ["score.teacher_top_k=17", "score.grid=16", "teacher.dtype=bfloat16"])
def test_a_larger_k_another_grid_and_another_teacher_key_are_scored_as_if_nothing_lay_there(world, setting):
    run = setting.split(".")[1].replace("=", "-")
    reusing, alone = (world.scored(f"{run}-{each}", setting, f"score.reuse={each}") for each in ("true", "false"))
    for shard in (0, 1):
        assert counts_of(reusing, shard) == {"reused": 0, "scored": WITH_ROWS, "cut": 0}
        assert (reusing.round.receipt("score", shard).file.sha256 == alone.round.receipt("score", shard).file.sha256)


def test_another_teachers_payloads_are_not_even_looked_at(world, tmp_path):
    save_model(tmp_path / "teacher", byte_tokenizer(), seed=3, sharpness=6, tied=False, vocab=320)
    settings = f"teacher.path={tmp_path / 'teacher'}"
    other = copy.copy(world)
    other.facts = world.facts | {"teacher": model_facts(world.config("other", settings).teacher)}
    context = other.scored("other", settings, "score.reuse=true")
    assert counts_of(context, 0) == {"reused": 0, "scored": WITH_ROWS, "cut": 0}
    assert not same(context.round.read("score", 0), world.source.round.read("score", 0), ["teacher_log_prob"])


def test_without_reuse_bytes_facts_and_inputs_are_those_of_a_store_that_holds_nothing_else(world):
    context = world.scored("off")
    for shard in (0, 1):
        first, second = (each.round.receipt("score", shard) for each in (world.source, context))
        assert first.file.sha256 == second.file.sha256 and first.facts == second.facts
        assert second.facts.keys() == {"rollouts", "scoring_key", "teacher_key", "environment_tokens"}
        assert not any("run=source/" in key and "/tokens/" in key for key in second.inputs)
    assert context.notes == {}


def test_rollouts_that_no_round_has_scored_are_scored_among_those_that_one_has(world):
    shard = [*world.rollouts[0], *world.written(seed=3)]
    context = world.scored("mixed", "score.reuse=true", shards=[shard])
    found = context.round.read("score", 0)
    fresh = score_rollouts(as_table(shard), *models(world), world.shared, context.config.score)
    assert counts_of(context, 0) == {"reused": WITH_ROWS, "scored": WITH_ROWS, "cut": 0}
    assert same(found, fresh, ["rollout_id", "position", "token_id", "teacher_rank", "teacher_topk_ids"])
    for name in ("teacher_log_prob", "teacher_entropy", "teacher_log_tail", *STUDENT_COLUMNS):
        assert numbers(found, name) == pytest.approx(numbers(fresh, name), abs=1e-4 if "topk" not in name else 1 / 32)
    reused = found.filter(pa.compute.is_valid(found["reused_from"]))
    assert same(reused, world.source.round.read("score", 0), TEACHER_COLUMNS)


def test_another_student_gets_its_own_columns_and_the_teacher_reads_only_where_it_is_not_known(world):
    settings, rollouts = world.config("x").score, as_table(world.rollouts[0])
    _, teacher = models(world)
    student = load_model(world.folder / "student")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1 + 0.01 * torch.randn_like(parameter))
    payloads = find_payloads(world.store, teacher_key(world.source.document, world.source.config),
                             world.facts["teacher"]["fingerprint"], settings, rollouts)
    seen = []
    found, used = score_reusing(rollouts, student, lambda: teacher, world.shared, settings, payloads,
                                lambda *event: seen.append(event))
    fresh = score_rollouts(rollouts, student, teacher, world.shared, settings)
    assert counted(found) == {"reused": len(used), "scored": WITH_ROWS - len(used)} and 0 < len(used) < WITH_ROWS
    assert not same(found, world.source.round.read("score", 0), ["student_log_prob"])
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen) and seen[-1][1:] == (len(found),) * 2
    assert same(found, fresh, ["student_topk_ids", "teacher_topk_ids", "rollout_id", "position"])
    for name in (*TEACHER_COLUMNS, *STUDENT_COLUMNS, "teacher_log_probs_at_student_topk"):
        assert numbers(found, name) == pytest.approx(numbers(fresh, name), abs=1e-4 if "topk" not in name else 1 / 32)
    for row in found.to_pylist():  # what a list and the student's gather say of one id is one number
        listed = dict(zip(row["teacher_topk_ids"], row["teacher_topk_log_probs"]))
        for token, log_prob in zip(row["student_topk_ids"], row["teacher_log_probs_at_student_topk"]):
            assert listed.get(token, log_prob) == log_prob


def test_equal_tokens_in_other_turns_are_scored_though_every_id_is_known(copied):
    whole = f"score.teacher_top_k={copied.shared}"
    commit(copied.scored("whole", whole))
    shard = copy.deepcopy(copied.rollouts[0])
    shard[0]["turns"] = [{"start": 0, "end": 4}, {"start": 6, "end": 12}]
    context = copied.scored("turns", whole, "score.reuse=true", shards=[shard])
    assert counts_of(context, 0) == {"reused": WITH_ROWS - 1, "scored": 1, "cut": 0}


def test_a_round_counts_once_it_is_committed(copied):
    copied.store.delete(layout.manifest("source", 0))
    before = copied.scored("before", "score.reuse=true")
    assert counts_of(before, 0) == {"reused": 0, "scored": WITH_ROWS, "cut": 0}
    commit(RoundContext(copied.store, "source", 0, copied.config("source"), {}, Round(copied.store, "source", 0)))
    assert counts_of(copied.without_teacher("after"), 0) == {"reused": WITH_ROWS, "scored": 0, "cut": 0}


@pytest.mark.parametrize("place", ["score", "rollout"])
def test_a_damaged_shard_of_another_run_is_computed_again_and_its_neighbour_is_used(copied, place):
    file = copied.store.local_path(copied.source.round.receipt(place, 0).file.key)
    content = file.read_bytes()
    file.write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])
    context = copied.scored("healed", "score.reuse=true")
    assert [counts_of(context, shard)["reused"] for shard in (0, 1)] == [0, WITH_ROWS]
    assert context.round.receipt("score", 0).file.sha256 == copied.source.round.receipt("score", 0).file.sha256


@pytest.mark.parametrize("key", [layout.run_json("source"), layout.manifest("source", 0), layout.plan("source", 0),
                                 layout.receipt("source", 0, "score", 0)])
def test_a_damaged_document_of_another_run_costs_its_payloads_and_nothing_else(copied, key):
    copied.store.local_path(key).write_bytes(b"{}")
    assert counts_of(copied.scored("healed", "score.reuse=true"), 0)["reused"] == 0


def test_the_round_whose_teacher_ran_is_named_however_often_its_payloads_were_copied(copied):
    commit(copied.without_teacher("half", "score.teacher_top_k=8"))
    context = copied.without_teacher("quarter", "score.teacher_top_k=4")
    assert set(context.round.read("score", 0)["reused_from"].to_pylist()) == {copied.manifest}
    once = copied.source.round.read("score", 0)
    assert np.array_equal(numbers(context.round.read("score", 0), "teacher_topk_log_probs"),
                          numbers(once, "teacher_topk_log_probs")[:, :4])


def test_an_exact_k_is_preferred_to_a_cut(copied):
    exact = commit(copied.scored("z-exact", "score.teacher_top_k=8"))
    context = copied.without_teacher("wanted", "score.teacher_top_k=8")
    assert set(context.round.read("score", 0)["reused_from"].to_pylist()) == {exact}
    assert counts_of(context, 0)["cut"] == 0


def test_a_branchs_shared_scores_are_found_where_they_were_computed(copied):
    branch = copied.begin("branch")
    for receipt in copied.source.round.receipts("score"):
        branch.round.share(replace(receipt))
    commit(branch)
    context = copied.without_teacher("wanted")
    assert set(context.round.read("score", 0)["reused_from"].to_pylist()) == {copied.manifest}
