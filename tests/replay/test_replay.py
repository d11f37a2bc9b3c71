"""Replays: branches that share a round's files, and what is played anew in them."""

import json
import shutil
from pathlib import Path

import pytest

from flows.commands.run import ended_early
from pipeline.replay.branch import make_branch, shared_shards
from pipeline.replay.request import Request
from storage import layout
from storage.catalog import connect, query
from storage.errors import UserError
from storage.lineage import lineage
from storage.objects import open_store
from storage.rounds import Round, committed_rounds, read_manifest, read_run
from storage.snapshot import take_snapshot
from storage.verify import verify
from tests.replay.conftest import play, replay


def contents(store: str) -> dict[str, bytes]:
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in Path(store).rglob("*") if path.is_file()}


def ask(store: str, sql: str, run: str | None = None) -> list[dict]:
    return query(connect(open_store(store), take_snapshot(open_store(store), run)), sql).to_pylist()


def test_a_replay_shares_the_files_of_rollouts_scores_and_masks_and_writes_none_of_them_again(store):
    before = contents(store)
    context, manifest = replay(store, settings=["objective.type=tail_bucket_topk"], name="tail")
    assert shared_shards(context) == {"prompts": 4, "rollout": 4, "score": 4, "mask": 4}
    after = contents(store)
    assert {key: after[key] for key in before} == before
    own = [key for key in after.keys() - before.keys() if key.endswith(".parquet")]
    assert {key.split("/")[2] for key in own} == {"train", "evaluation"}
    parent = read_manifest(open_store(store), "tiny", 1)
    kept = [file for file in parent.files if file.table not in ("steps", "evaluation")]
    assert [file for file in manifest.files if file.table not in ("steps", "evaluation")] == kept
    assert (manifest.parent, manifest.checkpoint_in) == (parent.parent, parent.checkpoint_in)
    assert verify(open_store(store)) == []


def test_a_replay_of_what_was_is_what_was_bit_for_bit(store):
    _, manifest = replay(store)
    parent = read_manifest(open_store(store), "tiny", 1)
    assert manifest.checkpoint_out.fingerprint == parent.checkpoint_out.fingerprint
    assert [file.sha256 for file in manifest.files] == [file.sha256 for file in parent.files]
    assert [file.sha256 for file in manifest.checkpoint_out.files] == [
        file.sha256 for file in parent.checkpoint_out.files]


@pytest.mark.parametrize("request_", [
    {"settings": ["objective.type=forward_kl_topk"]}, {"settings": ["objective.k=4"]}, {"settings": ["seed=9"]},
    {"masks": ["none"]}, {"settings": ["train.learning_rate=1e-4"]}], ids=str)
def test_each_change_alone_makes_another_student(store, request_):
    _, manifest = replay(store, evaluate=False, **request_)
    parent = read_manifest(open_store(store), "tiny", 1)
    assert manifest.checkpoint_out.fingerprint != parent.checkpoint_out.fingerprint
    assert manifest.checkpoint_in == parent.checkpoint_in


def test_masks_are_replaced_or_joined(store):
    replay(store, masks=["none"], name="bare", evaluate=False)
    replay(store, masks=["+detector"], name="more", evaluate=False)
    kinds = {run: [mask["type"] for mask in read_run(open_store(store), run)["config"]["mask"]]
             for run in ("tiny", "bare", "more")}
    assert kinds == {"tiny": ["special_tokens", "sql"], "bare": [], "more": ["special_tokens", "sql", "detector"]}
    weights = {run: ask(store, "SELECT avg((weight = 0)::INT) AS masked FROM masked_tokens WHERE round = 1", run)
               for run in kinds}
    assert weights["bare"] == [{"masked": 0.0}] and weights["tiny"][0]["masked"] > 0


def test_a_mask_that_the_run_has_keeps_its_settings(store):
    context, _ = replay(store, masks=["special_tokens"], name="listed", evaluate=False)
    assert context.document["config"]["mask"] == [read_run(open_store(store), "tiny")["config"]["mask"][0]]


def test_a_branch_reads_as_a_run_with_its_parents_first_rounds(store):
    replay(store, settings=["objective.type=tail_bucket_topk"], name="tail")
    rows = ask(store, "SELECT run, round, tokens, start_avg_at_k, manifest_id, avg_at_k IS NOT NULL AS graded "
                      "FROM rounds ORDER BY run, round")
    assert [(row["run"], row["round"], row["graded"]) for row in rows] == [
        ("tail", 0, True), ("tail", 1, True), ("tiny", 0, True), ("tiny", 1, True)]
    mine, theirs = rows[:2], rows[2:]
    assert [row["tokens"] for row in mine] == [row["tokens"] for row in theirs]
    assert mine[0]["manifest_id"] == theirs[0]["manifest_id"] and mine[1]["manifest_id"] != theirs[1]["manifest_id"]
    assert mine[1]["start_avg_at_k"] == theirs[1]["start_avg_at_k"] is not None


def test_a_branch_is_continued_with_the_prompts_of_its_parents_next_round(played, store):
    replay(store, settings=["objective.type=tail_bucket_topk"], name="tail")
    for run in ("tail", "tiny"):
        play(store, run, 2)
    plans = [Round(open_store(store), run, 2).plan() for run in ("tail", "tiny")]
    assert [shard.prompt_ids for shard in plans[0].shards] == [shard.prompt_ids for shard in plans[1].shards]
    assert plans[0].parent == read_manifest(open_store(store), "tail", 1).id
    assert plans[0].checkpoint != plans[1].checkpoint and committed_rounds(open_store(store), "tail") == [0, 1, 2]
    chain = lineage(open_store(store), read_manifest(open_store(store), "tail", 2).checkpoint_out.prefix)
    assert [(each["run"], each["round"]) for each in chain["rounds"]] == [("tail", 2), ("tail", 1), ("tiny", 0)]
    assert verify(open_store(store)) == []


def test_a_branch_of_a_branch_and_a_branch_at_the_first_round(store):
    replay(store, 0, name="first", settings=["seed=5"])
    context, _ = replay(store, 0, run="first", name="second", settings=["objective.type=tail_bucket_topk"])
    assert shared_shards(context)["evaluate"] == 4  # start and teacher, two shards each
    assert context.document["config"]["seed"] == 5 and context.document["branch"]["run"] == "first"
    assert committed_rounds(open_store(store), "second") == [0]
    graded = [ask(store, "SELECT teacher_avg_at_k FROM rounds WHERE round = 0", run) for run in ("second", "tiny")]
    assert graded[0] == graded[1] != [{"teacher_avg_at_k": None}]
    assert verify(open_store(store)) == []


def test_the_same_request_again_finds_the_branch_and_writes_nothing(store):
    context, manifest = replay(store, settings=["seed=9"])
    before = contents(store)
    again, same = replay(store, settings=["seed=9"])
    assert (again.run, same) == (context.run, manifest) and contents(store) == before


def test_a_replay_that_was_interrupted_goes_on(store):
    context = make_branch(store, Request("tiny", 1, "half", ["seed=9"]))
    files = sorted((Path(store) / "run=half" / "round=1" / "receipts").iterdir())
    for file in files[3:]:
        file.unlink()
    (Path(store) / layout.plan("half", 1)).unlink()
    _, manifest = replay(store, name="half", settings=["seed=9"])
    assert manifest.run == "half" and verify(open_store(store)) == [] and context.run == "half"


def test_a_replay_needs_nothing_but_the_files_that_manifests_name(played, tmp_path):
    """A store of documents and named files alone; models, problems and masks of the user's are gone."""
    store, bare = played / "store", tmp_path / "bare"
    source = open_store(store)
    manifests = [read_manifest(source, "tiny", number) for number in range(2)]
    document = read_run(source, "tiny")
    named = {file.key for manifest in manifests for file in (*manifest.files, *manifest.checkpoint_in.files,
                                                             *manifest.checkpoint_out.files)}
    named |= {file["key"] for file in document["student_checkpoint"]["files"]}
    documents = {path.relative_to(store).as_posix() for path in store.rglob("*.json") if "checkpoint=" not in str(path)}
    for key in named | documents:
        (bare / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(store / key, bare / key)
    config = json.dumps(document["config"])
    moved = tmp_path / "elsewhere"
    played.rename(moved)
    try:
        assert str(played) in config  # models and problems are named by paths that are gone now
        _, same = replay(bare.as_posix(), name="same")
        _, other = replay(bare.as_posix(), settings=["objective.type=union_topk"], masks=["special_tokens"],
                          name="other")
    finally:
        moved.rename(played)
    assert same.checkpoint_out.fingerprint == manifests[1].checkpoint_out.fingerprint
    assert other.checkpoint_out.fingerprint != same.checkpoint_out.fingerprint


HIDDEN = "needs the teacher's hidden states, which round 1 of tiny does not have.*opd rescore tiny --round 1"


@pytest.mark.parametrize("number, request_, words", [
    (9, {}, "tiny has no round 9 to replay: it has rounds 0 to 1"),
    (-1, {}, "has no round -1"),
    (1, {"run": "tinny"}, "run tinny is not in the store"),
    (1, {"settings": ["objective.k=64"]}, "objective.k = 64, but round 1 of tiny holds the teacher's top 16.*opd "
                                          "rescore tiny --round 1 --set score.teacher_top_k=64"),
    (1, {"settings": ["objective.type=student_topk", "objective.k=12"]}, "holds the student's top 8"),
    (1, {"settings": ["objective.type=full_vocabulary"]}, HIDDEN),
    (1, {"settings": ["objective.type=teacher_topk_lms"]}, "did you mean 'teacher_topk_lsm'"),
    (1, {"settings": ["objective.typ=gkd"]}, "unknown key objective"),
    (1, {"settings": ["rollout.top_p=0.5"]}, "replay cannot change rollout.top_p: round 1 of tiny was made with it"),
    (1, {"settings": ["score.teacher_top_k=4"]}, "replay cannot change score.teacher_top_k.*opd rescore"),
    (1, {"settings": ["evaluation.every=2"]}, "replay cannot change evaluation"),
    (1, {"masks": ["+detector", "none"]}, "join the run's masks"),
    (1, {"masks": ["no_such_mask"]}, "there is no 'no_such_mask' in sql/masks"),
    (1, {"name": "Not Clean"}, "is not clean"),
    (1, {"name": "tiny", "settings": ["seed=4"]}, "tiny exists already"),
], ids=str)
def test_bad_requests_are_one_line_and_write_nothing(store, number, request_, words):
    before = contents(store)
    with pytest.raises(UserError, match=words) as caught:
        replay(store, number, **request_)
    assert "\n" not in str(caught.value) and contents(store) == before


def test_a_branch_that_exists_with_other_changes_is_refused_by_name(store):
    replay(store, name="taken", settings=["seed=5"], evaluate=False)
    with pytest.raises(UserError, match="taken exists already, with another branch.changed, config.objective.*--as"):
        replay(store, name="taken", settings=["objective.k=4"], evaluate=False)


def test_a_round_that_is_not_scored_yet_cannot_be_branched(store):
    for file in Path(store).glob("run=tiny/round=1/receipts/score-2.json"):
        file.unlink()
    with pytest.raises(UserError, match="its score is not finished; go on with `opd continue tiny`"):
        replay(store)


def test_verify_tells_a_branch_whose_parent_changed_and_rounds_that_are_not_the_branchs_own(store):
    replay(store, settings=["seed=9"], name="b", evaluate=False)
    shutil.copytree(Path(store) / "run=tiny" / "round=0", Path(store) / "run=b" / "round=0")
    assert any(each.key == "run=b/round=0/" and each.kind == "foreign" for each in verify(open_store(store), "b"))
    shutil.rmtree(Path(store) / "run=b" / "round=0")
    assert verify(open_store(store), "b") == []
    (Path(store) / layout.manifest("tiny", 0)).unlink()
    assert any("b branched off after it" in each.problem for each in verify(open_store(store), "b"))


def test_training_that_ended_early_is_told_where_the_round_is(store):
    context, _ = replay(store, settings=["train.age_cap=1"], name="capped", evaluate=False)
    assert "train.age_cap ended its training early" in ended_early(context.config, 1)
    assert ended_early(context.config.model_copy(update={"run": "tiny"}), 1) == ""
