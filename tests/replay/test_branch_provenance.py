"""What a branch claims is what it has: found by a review that tried to make one learn from other data than it says."""

from pathlib import Path

import pytest

from pipeline import stages
from pipeline.context import open_context
from pipeline.replay.branch import make_branch, shared_shards
from pipeline.replay.check import check_round
from pipeline.replay.request import Request
from storage.catalog import connect, query
from storage.errors import UserError
from storage.lineage import lineage
from storage.objects import open_store
from storage.rounds import Round, read_run
from storage.snapshot import take_snapshot
from storage.sqlfiles import load
from storage.verify import verify
from tests.replay.conftest import play, replay
from tests.tiny import byte_tokenizer, save_model


def ask(store: str, sql: str, run: str | None = None) -> list[dict]:
    return query(connect(open_store(store), take_snapshot(open_store(store), run)), sql).to_pylist()


def test_a_branch_at_an_inherited_round_is_one_of_the_run_that_made_it(store):
    replay(store, masks=["none"], name="bare", evaluate=False)
    context = make_branch(store, Request("bare", 0, "bare0", evaluate=False))
    made = {mask["type"] for receipt in context.round.receipts("mask") for mask in receipt.facts["masks"].values()}
    assert made == {mask.type for mask in context.config.mask} == {"special_tokens", "sql"}
    assert context.document["branch"]["run"] == "tiny"


def test_an_inherited_round_is_checked_under_the_config_that_made_it(store):
    replay(store, settings=["objective.type=tail_bucket_topk"], name="tail", evaluate=False)
    assert check_round(open_context(store, "tail", 0))["same"]


@pytest.mark.parametrize("step", ["put_plan", "share"])
def test_a_branch_that_was_killed_while_it_was_made_is_still_a_replay_when_somebody_goes_on(store, monkeypatch, step):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Round, step, killed)
        with pytest.raises(KeyboardInterrupt):
            make_branch(store, Request("tiny", 1, "half", ["seed=9"], evaluate=False))
    play(store, "half", 1)  # what `opd continue half` does
    assert shared_shards(open_context(store, "half", 1)) == {"prompts": 4, "rollout": 4, "score": 4, "mask": 4}


def test_a_kept_mask_keeps_the_text_that_the_run_recorded(played, store):
    file = played / "first_token.sql"
    text = file.read_text()
    try:
        file.write_text(text.replace("position = 0", "position < 5"))
        context = make_branch(store, Request("tiny", 1, "more", masks=["+detector"], evaluate=False))
        file.unlink()
        make_branch(store, Request("tiny", 1, "gone", masks=["+large_gap"], evaluate=False))
    finally:
        file.write_text(text)
    assert context.document["sql_masks"] == read_run(open_store(store), "tiny")["sql_masks"]


def test_under_other_versions_nothing_that_a_score_depends_on_is_mixed(store, tmp_path, monkeypatch):
    installed = tmp_path / "site-packages" / "torch-2.99.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.99.0\n")
    monkeypatch.syspath_prepend(installed.parent)
    context, _ = replay(store, name="hid", rescore=True, evaluate=False, settings=[
        "score.teacher_hidden_states=bfloat16", "objective.type=full_vocabulary"])
    assert shared_shards(context) == {"prompts": 4, "rollout": 4}
    assert context.document["branch"]["made_with"]["torch"] != "2.99.0" == context.document["versions"]["torch"]


def test_another_order_of_training_asks_no_prompt_again(store):
    replay(store, settings=["seed=77"], name="reordered", evaluate=False)
    stages.plan(open_context(store, "reordered", 2))
    asked = [{prompt for shard in Round(open_store(store), "reordered", number).plan().shards
              for prompt in shard.prompt_ids} for number in range(3)]
    assert not asked[2] & (asked[0] | asked[1])


def test_a_name_does_not_depend_on_how_the_store_is_spelled(store, monkeypatch):
    first = make_branch(store, Request("tiny", 1, None, ["seed=8"])).run
    monkeypatch.chdir(Path(store).parent)
    assert make_branch("store", Request("tiny", 1, None, ["seed=8"])).run == first


def test_verify_of_a_branch_reads_the_runs_that_it_comes_from(store):
    replay(store, settings=["seed=9"], name="b", evaluate=False)
    file = next(Path(store, "run=tiny/round=0/tokens").rglob("*.parquet"))
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    assert [finding.kind for finding in verify(open_store(store), "b")] == ["changed"]


def test_lineage_tells_the_run_that_wrote_the_rollouts(store):
    _, manifest = replay(store, 0, settings=["seed=9"], name="b", evaluate=False)
    assert set(lineage(open_store(store), manifest.checkpoint_out.prefix)["runs"]) == {"b", "tiny"}


def test_the_gap_of_a_branch_is_that_to_its_own_teacher(played, store):
    other = save_model(played / "third", byte_tokenizer(), seed=11, sharpness=1.5)
    context, _ = replay(store, name="taught", rescore=True, settings=[f"teacher.path={other}"])
    rows = ask(store, "SELECT DISTINCT round, model FROM evaluations WHERE role = 'teacher' ORDER BY round", "taught")
    assert [row["round"] for row in rows] == [0, 1] and rows[1]["model"] == context.document["teacher"]["fingerprint"]
    (new,) = ask(store, "SELECT avg_at_k FROM accuracy WHERE role = 'teacher' AND round = 1", "taught")
    assert ask(store, "SELECT teacher_avg_at_k AS avg_at_k FROM rounds WHERE round = 1", "taught") == [new]


def test_sums_over_runs_count_a_shared_round_once_where_they_ask_for_owners(store):
    replay(store, settings=["seed=9"], name="b", evaluate=False)
    owners = ask(store, "SELECT run, round, owner FROM rounds ORDER BY run, round")
    assert [tuple(row.values()) for row in owners] == [("b", 0, "tiny"), ("b", 1, "b"), ("tiny", 0, "tiny"),
                                                       ("tiny", 1, "tiny")]
    reuse = ask(store, load("reports", "payload_reuse").text)
    assert [(row["run"], row["round"]) for row in reuse] == [("b", 1), ("tiny", 0), ("tiny", 1)]


@pytest.mark.parametrize("setting", ["run=foo", "rounds=7", "store=elsewhere", "tracker=[]", "threads=2"])
def test_a_setting_that_would_be_ignored_is_refused(store, setting):
    with pytest.raises(UserError, match="replay --set|replay cannot change threads"):
        make_branch(store, Request("tiny", 1, "ignored", [setting, "seed=8"], evaluate=False))
