"""Rescores: a branch with other scores of the same rollouts, and what of the teacher's is taken from the store."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import stages
from pipeline.replay.branch import make_branch, shared_shards
from pipeline.replay.request import Request
from storage.catalog import connect, query
from storage.errors import UserError
from storage.objects import open_store
from storage.rounds import Round, read_manifest
from storage.snapshot import take_snapshot
from storage.verify import verify
from tests.replay.conftest import play, replay
from tests.tiny import byte_tokenizer, save_model

TEACHER = ["teacher_log_prob", "teacher_rank", "teacher_entropy", "teacher_topk_ids", "teacher_topk_log_probs",
           "teacher_log_tail"]
STUDENT = ["student_log_prob", "student_entropy", "student_topk_ids", "student_topk_log_probs"]


def rescore(store: str, name: str, *settings: str, run: str = "tiny") -> Round:
    """A branch of round 1 whose scores are finished."""
    context = make_branch(store, Request(run, 1, name, list(settings), rescore=True))
    for stage in ("prompts", "rollout", "score", "hidden"):
        for shard in context.round.pending(stage):
            stages.run_shard(context, stage, shard)
    return context.round


def counted(store: str, run: str) -> tuple[int, int]:
    """(hits, misses) in rollouts, by SQL."""
    connection = connect(open_store(store), take_snapshot(open_store(store), run, in_progress=True))
    (row,) = query(connection, "SELECT count(DISTINCT rollout_id) FILTER (reused_from IS NOT NULL) AS hits, "
                   "count(DISTINCT rollout_id) FILTER (reused_from IS NULL) AS misses FROM tokens WHERE round = 1"
                   ).to_pylist()
    return row["hits"], row["misses"]


def told(round: Round) -> tuple[int, int]:
    facts = [receipt.facts for receipt in round.receipts("score")]
    return sum(each["reused"] for each in facts), sum(each["scored"] for each in facts)


def scores(store: str, run: str) -> pa.Table:
    return Round(open_store(store), run, 1).read("score")


def test_a_larger_k_is_scored_anew_and_leaves_the_first_scores_as_they_were(store):
    files = {path: path.read_bytes() for path in Path(store).rglob("run=tiny/**/*") if path.is_file()}
    round = rescore(store, "wide", "score.teacher_top_k=32")
    assert told(round) == counted(store, "wide") == (0, 16)
    assert {path: path.read_bytes() for path in Path(store).rglob("run=tiny/**/*") if path.is_file()} == files
    wide, first = scores(store, "wide"), scores(store, "tiny")
    cut = [row[:16] for row in wide["teacher_topk_ids"].to_pylist()]
    assert cut == first["teacher_topk_ids"].to_pylist() and wide.select(STUDENT).equals(first.select(STUDENT))


def test_the_same_teacher_again_and_a_smaller_k_are_taken_from_the_store_without_the_teacher(played, store):
    hidden = played / "teacher-elsewhere"
    (played / "teacher").rename(hidden)
    try:
        again = rescore(store, "again", "score.student_top_k=4")
        narrow = rescore(store, "narrow", "score.teacher_top_k=8")
    finally:
        hidden.rename(played / "teacher")
    parent = read_manifest(open_store(store), "tiny", 1).id
    first = scores(store, "tiny")
    for round in (again, narrow):
        assert told(round) == counted(store, round.run) == (16, 0)
        assert scores(store, round.run)["reused_from"].unique().to_pylist() == [parent]
    assert scores(store, "again").select(TEACHER).equals(first.select(TEACHER))
    assert [row[:8] for row in first["teacher_topk_ids"].to_pylist()] == scores(store, "narrow")[
        "teacher_topk_ids"].to_pylist()


def test_a_second_teacher_gets_its_own_scores_and_a_student_of_its_own(played, store):
    other = played / "second"
    if not other.exists():
        save_model(other, byte_tokenizer(), seed=7, sharpness=1.5)
    context = make_branch(store, Request("tiny", 1, "two", [f"teacher.path={other}"], rescore=True))
    assert shared_shards(context) == {"prompts": 4, "rollout": 4}
    round = rescore(store, "two", f"teacher.path={other}")
    assert told(round) == counted(store, "two") == (0, 16)
    assert not scores(store, "two")["teacher_log_prob"].equals(scores(store, "tiny")["teacher_log_prob"])
    assert scores(store, "two").select(STUDENT).equals(scores(store, "tiny").select(STUDENT))
    manifest = play(store, "two", 1)
    assert manifest.checkpoint_out.fingerprint != read_manifest(open_store(store), "tiny", 1).checkpoint_out.fingerprint
    assert verify(open_store(store)) == []


def test_hidden_states_join_the_scores_that_there_are_and_other_objectives_read_them(store):
    rescore(store, "states", "score.teacher_hidden_states=bfloat16")
    context = make_branch(store, Request("tiny", 1, "states", ["score.teacher_hidden_states=bfloat16"], rescore=True))
    assert shared_shards(context)["score"] == 4 and context.round.receipts("hidden")[0].head
    branch, _ = replay(store, run="states", settings=["objective.type=full_vocabulary"], name="full", evaluate=False)
    assert shared_shards(branch)["hidden"] == 4 and verify(open_store(store)) == []


def test_rescored_rounds_are_replayed_before_they_are_trained_on(store):
    rescore(store, "wide", "score.teacher_top_k=32")
    context, _ = replay(store, run="wide", settings=["objective.k=24"], name="wider", evaluate=False)
    assert context.config.objective.k == 24 and verify(open_store(store)) == []


@pytest.mark.parametrize("settings, words", [
    (["rollout.samples=4"], "rescore cannot change rollout.samples"),
    (["score.teacher_top_k=9999"], "score.teacher_top_k = 9999 is larger than the 259 tokens both models share"),
    (["teacher.path=/no/such/folder"], "/no/such/folder does not exist"),
], ids=str)
def test_bad_requests_write_nothing(store, settings, words):
    before = sorted(path for path in Path(store).rglob("*"))
    with pytest.raises(UserError, match=words) as caught:
        rescore(store, "bad", *settings)
    assert "\n" not in str(caught.value) and sorted(path for path in Path(store).rglob("*")) == before


def test_a_teacher_of_another_vocabulary_is_refused(played, store):
    other = played / "foreign"
    shutil.rmtree(other, ignore_errors=True)
    save_model(other, byte_tokenizer(["the teacher", "the theme"]), seed=7)
    with pytest.raises(UserError, match="merge rules differ|cannot be compared"):
        rescore(store, "foreign", f"teacher.path={other}")
