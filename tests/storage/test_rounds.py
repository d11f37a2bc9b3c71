import pytest
from small_store import STAGE_TABLES, contents, make_plan, make_run, model_folder, play_round, play_shard, table

from storage import documents, layout
from storage.errors import IntegrityError, UserError
from storage.objects import open_store
from storage.rounds import (
    Round,
    committed_rounds,
    create_run,
    list_runs,
    local_checkpoint,
    put_checkpoint,
    read_run,
    starting_checkpoint,
)
from storage.snapshot import take_snapshot


@pytest.fixture
def round(store, tmp_path):
    make_run(store, "r", tmp_path / "models" / "base")
    round = Round(store, "r", 0)
    make_plan(round, 3)
    return round


def test_what_is_pending_is_the_plan_minus_the_receipts(round, tmp_path):
    assert round.pending("prompts") == [0, 1, 2] and round.pending("train") == [0]
    play_shard(round, "prompts", 1, tmp_path)
    assert round.pending("prompts") == [0, 2]
    assert [receipt.shard for receipt in round.receipts("prompts")] == [1]


def test_a_shard_reads_back_as_it_was_written(round, tmp_path):
    for shard in range(3):
        for stage in ("prompts", "rollout", "score"):
            play_shard(round, stage, shard, tmp_path)
    assert round.read("score", 1).equals(table("score", 1))
    assert round.read("score", columns=("position", "teacher_topk_ids")).num_rows == 9


def test_a_shard_without_a_receipt_does_not_count(round, tmp_path):
    receipt = play_shard(round, "prompts", 0, tmp_path)
    round.store.delete(layout.receipt("r", 0, "prompts", 0))
    again = Round(round.store, "r", 0)
    assert round.store.get(receipt.file.key) and again.pending("prompts") == [0, 1, 2]
    with pytest.raises(UserError, match="prompts of round 0 of r is not finished: shards 0 of 3 are pending"):
        again.read("prompts", 0)


def test_the_loser_of_a_race_returns_the_winners_receipt(round, tmp_path):
    loser = Round(round.store, "r", 0)
    assert loser.receipt("prompts", 0) is None
    winner = play_shard(round, "prompts", 0, tmp_path, variant=1)
    assert play_shard(loser, "prompts", 0, tmp_path, variant=2) == winner
    assert loser.read("prompts", 0).equals(table("prompts", 0, variant=1))


def test_the_plan_that_was_first_counts(round):
    assert len(make_plan(Round(round.store, "r", 0), 9).shards) == 3


def test_a_stage_with_pending_shards_is_not_committed(round, tmp_path):
    play_shard(round, "prompts", 0, tmp_path)
    with pytest.raises(UserError, match="shards 1, 2 of 3 are pending"):
        round.commit_stage("prompts")
    with pytest.raises(UserError, match="cannot be committed: prompts, .*, train, evaluate not finished"):
        round.commit()


def test_a_table_of_another_stage_is_not_written(round):
    with pytest.raises(IntegrityError, match="is not a 'prompts' table"):
        round.finish("prompts", 0, "prompts", table("mask"), inputs={})


def test_rounds_are_chained_by_manifests_and_checkpoints(two_rounds):
    first, second = (Round(two_rounds, "r", number).manifest() for number in range(2))
    assert first.parent is None and second.parent == first.id
    assert first.id == documents.sha256(two_rounds.get(layout.manifest("r", 0)))
    assert second.checkpoint_in == first.checkpoint_out != second.checkpoint_out
    assert committed_rounds(two_rounds, "r") == [0, 1] and list_runs(two_rounds) == ["r"]
    assert {file.table for file in first.files} == set(STAGE_TABLES.values())


def test_the_manifest_lies_in_the_checkpoint_it_ended_with(two_rounds):
    manifest = Round(two_rounds, "r", 0).manifest()
    copy = two_rounds.get(manifest.checkpoint_out.prefix + "round.json")
    assert copy == two_rounds.get(layout.manifest("r", 0))


def test_committing_again_puts_the_copy_that_is_gone(two_rounds):
    round = Round(two_rounds, "r", 1)
    copy = round.manifest().checkpoint_out.prefix + "round.json"
    two_rounds.delete(copy)
    assert round.commit() == round.manifest() and two_rounds.get(copy)


def test_two_stores_in_different_places_hold_the_same_bytes(tmp_path):
    found = []
    for place in ("a", "b/c"):
        store = open_store(tmp_path / place / "store", create=True)
        make_run(store, "r", tmp_path / "models" / "base")
        play_round(store, "r", 0, tmp_path / "models")
        Round(store, "r", 0).note_timing("prompts", 0, {"seconds": len(place), "host": place})
        found.append(contents(store.root))
    assert found[0] == found[1]


def test_timings_are_noted_once_and_never_hashed(two_rounds):
    round = Round(two_rounds, "r", 0)
    round.note_timing("rollout", 1, {"seconds": 1.5})
    round.note_timing("rollout", 1, {"seconds": 9.0})
    assert round.timings() == [{"seconds": 1.5, "stage": "rollout", "shard": 1}]


def test_a_round_cannot_start_before_the_previous_one_is_committed(two_rounds):
    with pytest.raises(UserError, match="round 3 of r cannot start: round 2 is not committed"):
        starting_checkpoint(two_rounds, "r", 3)


# --- runs ---


def test_a_run_may_grow_in_rounds_and_move_and_nothing_else(store, tmp_path):
    make_run(store, "r", tmp_path / "base", rounds=1)
    before = store.get(layout.run_json("r"))
    assert make_run(store, "r", tmp_path / "base", rounds=5)["config"]["rounds"] == 1
    assert store.get(layout.run_json("r")) == before and "store" not in read_run(store, "r")["config"]
    other = read_run(store, "r")
    other["config"] = {**other["config"], "seed": 2, "train": {"epochs": 1}}
    with pytest.raises(UserError, match=r"run r exists with other values of config.seed, config.train: "):
        create_run(store, "r", other)


@pytest.mark.parametrize("run", ["", "A", "../x", "a/b", "a b", ".a", "a..b", "a" * 65, "a\n", "ü", "a;drop", "-a"])
def test_run_ids_that_are_not_clean_are_refused(store, run):
    with pytest.raises(UserError, match="is not clean"):
        Round(store, run, 0)
    with pytest.raises(UserError, match="is not clean"):
        create_run(store, run, {})


# --- checkpoints ---


def test_a_checkpoint_reads_back_and_keeps_only_safe_files(store, tmp_path):
    folder = model_folder(tmp_path / "m")
    for name in ("pytorch_model.bin", "modeling.py", "state.pkl", ".hidden.json", "round.json"):
        (folder / name).write_text("x")
    files = put_checkpoint(store, "r", 0, folder)
    local = local_checkpoint(store, files)
    assert sorted(path.name for path in local.iterdir()) == ["chat_template.jinja", "config.json",
                                                            "model.safetensors", "optimizer.safetensors"]
    assert all((local / path.name).read_bytes() == path.read_bytes() for path in folder.glob("*.safetensors"))


def test_the_fingerprint_is_of_the_weights_alone_and_the_folder_of_all(store, tmp_path):
    one = put_checkpoint(store, "r", 1, model_folder(tmp_path / "a", 1, optimizer_seed=1))
    two = put_checkpoint(store, "r", 1, model_folder(tmp_path / "b", 1, optimizer_seed=2))
    other = put_checkpoint(store, "r", 1, model_folder(tmp_path / "c", 2, optimizer_seed=1))
    assert one.fingerprint == two.fingerprint != other.fingerprint
    assert len({one.prefix, two.prefix, other.prefix}) == 3


def test_a_model_without_safetensors_is_refused(store, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="pickled weights only .pytorch_model.bin."):
        put_checkpoint(store, "r", 0, tmp_path / "m")
    with pytest.raises(UserError, match="is not a folder"):
        put_checkpoint(store, "r", 0, tmp_path / "nowhere")


def test_damaged_weights_are_not_opened(two_rounds):
    files = starting_checkpoint(two_rounds, "r", 1)
    path = two_rounds.root / files.prefix / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="model.safetensors was changed"):
        local_checkpoint(two_rounds, files)


def test_a_damaged_shard_is_not_read_even_if_it_was_read_before(two_rounds):
    round = Round(two_rounds, "r", 0)
    round.read("score")
    path = two_rounds.root / round.receipt("score", 0).file.key
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="is truncated"):
        round.read("score")


# --- snapshots ---


def test_a_snapshot_holds_committed_rounds_and_their_files(two_rounds):
    snapshot = take_snapshot(two_rounds)
    assert snapshot.rounds() == [("r", 0, True), ("r", 1, True)]
    assert [file.key for file in snapshot.files("r", 1, "tokens")] == [
        receipt.file.key for receipt in Round(two_rounds, "r", 1).receipts("score")]
    assert snapshot.files("r", 1, "hidden_states") == []
    assert snapshot.documents["r"]["teacher"] == {"fingerprint": "7ea0"}


def test_a_round_in_progress_is_seen_when_asked_for_and_then_stays_frozen(two_rounds, tmp_path):
    round = Round(two_rounds, "r", 2)
    make_plan(round, 2)
    play_shard(round, "prompts", 1, tmp_path)
    snapshot = take_snapshot(two_rounds, "r", in_progress=True)
    play_shard(round, "prompts", 0, tmp_path)
    assert snapshot.rounds()[-1] == ("r", 2, False)
    assert [file.key for file in snapshot.files("r", 2, "prompts")] == [round.receipt("prompts", 1).file.key]
    assert take_snapshot(two_rounds).rounds() == [("r", 0, True), ("r", 1, True)]


def test_a_snapshot_of_a_run_that_is_not_there_names_those_that_are(two_rounds):
    with pytest.raises(UserError, match="run x is not in the store .*: it has r"):
        take_snapshot(two_rounds, "x")


def test_a_gap_among_the_manifests_is_told_and_a_folder_beside_them_counts_nothing(two_rounds):
    stray = layout.manifest("r", 999)
    two_rounds.put_if_absent(stray, two_rounds.get(layout.manifest("r", 1)))
    assert committed_rounds(two_rounds, "r") == [0, 1] and len(take_snapshot(two_rounds, "r").rounds()) == 2
    two_rounds.delete(layout.manifest("r", 0))
    with pytest.raises(IntegrityError, match="round 0 of r has no manifest, though a later round has one"):
        take_snapshot(two_rounds, "r")
