import random
import shutil

import pytest
from small_store import contents, make_plan, make_run, model_folder, play_round, play_shard, table

from storage import codec, documents, layout
from storage.checkpoints import put_checkpoint
from storage.errors import IntegrityError, UserError
from storage.objects import open_store
from storage.records import CheckpointFiles, Receipt, ShardFile, pack
from storage.rounds import Round, create_run, local_checkpoint, read_run, starting_checkpoint
from storage.verify import verify

FLIPS_PER_FILE = 4


@pytest.fixture
def whole(memory_path):
    """A store with run `r`, two rounds; tests may damage it."""
    store = open_store(memory_path / "store", create=True)
    make_run(store, "r", memory_path / "models" / "base")
    for number in range(2):
        play_round(store, "r", number, memory_path / "models")
    return store


def file_of(store, stage: str, shard: int = 0, number: int = 0):
    return store.root / Round(store, "r", number).receipt(stage, shard).file.key


def findings(store) -> dict[str, str]:
    return {finding.key: finding.kind for finding in verify(store)}


def key_of(store, path) -> str:
    return path.relative_to(store.root).as_posix()


def test_a_store_that_nobody_touched_has_no_findings(whole):
    assert verify(whole) == [] and verify(whole, "r") == []


def test_every_flipped_bit_in_every_kind_of_file_is_named(whole):
    chance = random.Random(4)
    keys = [key for key in contents(whole.root) if key != "store.json"]
    kinds = {key.rpartition("/")[2].partition("-")[0] for key in keys}
    assert {"run.json", "plan.json", "manifest.json", "round.json", "model.safetensors", "optimizer.safetensors",
            "config.json", "part", "score.json", "train"} <= kinds
    for key in keys:
        path, original = whole.root / key, (whole.root / key).read_bytes()
        for _ in range(FLIPS_PER_FILE):
            flipped = bytearray(original)
            bit = chance.randrange(8 * len(flipped))
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            assert list(findings(whole)) == [key], f"bit {bit}"
        path.write_bytes(original)
    assert verify(whole) == []


def test_a_store_whose_marker_was_changed_is_not_opened(whole):
    path = whole.root / "store.json"
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":3'))
    with pytest.raises(IntegrityError, match="store.json was changed"):
        open_store(whole.root)


@pytest.mark.parametrize("name", ["run=r/run.json", "run=r/round=0/plan.json", "run=r/round=0/receipts/score-1.json",
                                  "run=r/round=0/mask.json", "run=r/round=0/manifest.json", "shard", "weights"])
def test_truncated_empty_and_missing_files_are_told_apart(whole, name):
    weights = next(whole.root.glob("run=r/checkpoint=1/*/model.safetensors"))
    path = {"shard": file_of(whole, "rollout"), "weights": weights}.get(name, whole.root / name)
    data, key = path.read_bytes(), key_of(whole, path)
    path.write_bytes(data[:len(data) // 2])
    assert findings(whole) == {key: "truncated"}
    path.write_bytes(b"")
    assert findings(whole) == {key: "empty"}
    path.unlink()
    assert findings(whole)[key] == "missing"
    path.symlink_to("/etc/passwd")
    assert findings(whole)[key] == "symlink"


def test_a_file_that_grew_is_told_apart(whole):
    path = next(whole.root.glob("run=r/checkpoint=2/*/config.json"))
    path.write_bytes(path.read_bytes() + b" ")
    assert findings(whole) == {key_of(whole, path): "longer"}


def test_swapped_shards_are_named_with_each_other(whole):
    one, two = file_of(whole, "score", 0), file_of(whole, "score", 1)
    bytes_one, bytes_two = one.read_bytes(), two.read_bytes()
    one.write_bytes(bytes_two)
    two.write_bytes(bytes_one)
    found = {finding.key: finding for finding in verify(whole)}
    assert found.keys() == {key_of(whole, one), key_of(whole, two)}
    assert found[key_of(whole, one)].kind == "swapped" and key_of(whole, two) in found[key_of(whole, one)].problem


@pytest.mark.parametrize("one, two", [("receipts/score-0", "receipts/score-1"), ("plan", "manifest"),
                                      ("mask", "score"), ("receipts/mask-0", "mask")])
def test_swapped_documents_are_foreign(whole, one, two):
    paths = [whole.root / f"run=r/round=0/{name}.json" for name in (one, two)]
    data = [path.read_bytes() for path in paths]
    for path, other in zip(paths, reversed(data)):
        path.write_bytes(other)
    found = findings(whole)
    assert {key: found[key] for key in map(lambda path: key_of(whole, path), paths)} == {
        key_of(whole, path): "foreign" for path in paths}


def test_documents_of_another_round_or_run_are_foreign(whole):
    first, second = (whole.root / f"run=r/round={number}/rollout.json" for number in range(2))
    shutil.copyfile(first, second)
    assert findings(whole) == {key_of(whole, second): "foreign"}


def test_a_shard_of_another_table_is_foreign_and_another_version_is_stale(whole):
    path = file_of(whole, "rollout")
    path.write_bytes(codec.encode(table("mask", rows=50)))
    assert findings(whole) == {key_of(whole, path): "foreign"}
    data = codec.encode(table("rollout", variant=5).set_column(4, "data_source", [["a longer name"] * 3]).cast(
        table("rollout").schema))
    path.write_bytes(data)
    assert findings(whole) == {key_of(whole, path): "stale"}


def test_a_shard_that_is_something_else_is_called_changed(whole):
    path = file_of(whole, "mask")
    path.write_bytes(b"x" * path.stat().st_size)
    assert findings(whole) == {key_of(whole, path): "changed"}


def test_a_whole_receipt_that_was_not_committed_is_stale(whole):
    key = layout.receipt("r", 0, "score", 0)
    receipt = Round(whole, "r", 0).receipt("score", 0)
    other = Receipt(receipt.stage, receipt.shard, receipt.file, receipt.inputs, {"rows": 4}, None)
    (whole.root / key).write_bytes(pack("receipt", "r", 0, other))
    assert findings(whole) == {key: "stale"}


def test_a_score_of_other_rollouts_is_stale(whole, memory_path):
    round = Round(whole, "r", 2)
    make_plan(round, 1)
    play_shard(round, "prompts", 0, memory_path)
    rollout = play_shard(round, "rollout", 0, memory_path)
    round.finish("score", 0, "tokens", table("score"), inputs={rollout.file.key: "0" * 64}, scores="0123abcd")
    assert findings(whole) == {layout.receipt("r", 2, "score", 0): "stale"}


def test_two_receipts_for_one_file_are_duplicates(whole, memory_path):
    round = Round(whole, "r", 2)
    make_plan(round, 2)
    first = play_shard(round, "prompts", 0, memory_path)
    key = layout.receipt("r", 2, "prompts", 1)
    whole.put_if_absent(key, pack("receipt", "r", 2, Receipt("prompts", 1, first.file, {}, {}, None)))
    assert findings(whole) == {key: "duplicate"}


def test_a_rewritten_history_is_found_by_its_children(whole):
    """Every document of round 0 made to agree with another manifest: round 1 still names the old one."""
    manifest = Round(whole, "r", 0).manifest()
    forged = pack("manifest", "r", 0, type(manifest)(**{**vars(manifest), "parent": "f" * 64}))
    for key in (layout.manifest("r", 0), manifest.checkpoint_out.prefix + "round.json"):
        (whole.root / key).write_bytes(forged)
    assert findings(whole) == {layout.manifest("r", 0): "stale"}


@pytest.mark.parametrize("number", [0, 1])
def test_a_manifest_that_is_gone_is_missing(whole, number):
    whole.delete(layout.manifest("r", number))
    assert findings(whole) == {layout.manifest("r", number): "missing"}
    Round(whole, "r", number).commit()
    assert verify(whole) == []


def test_a_round_whose_whole_folder_is_gone_is_missing(whole):
    shutil.rmtree(whole.root / "run=r/round=0")
    assert layout.manifest("r", 0) in findings(whole)


def test_orphans_of_killed_workers_are_no_findings(whole):
    (whole.root / "run=r/round=0/rollouts/.tmp-abc").write_bytes(b"half")
    shutil.copyfile(file_of(whole, "rollout"), file_of(whole, "rollout").with_name("part-0-000000000000.parquet"))
    put_checkpoint(whole, "r", 2, model_folder(whole.root.parent / "loser", 99))
    (whole.root / "run=r/round=7").mkdir()
    assert verify(whole) == []


@pytest.mark.parametrize("key", ["../outside.parquet", "/etc/passwd", "run=r/../../outside.parquet", "a//b", "run=r/.x",
                                 "run=r/round=0/rollouts/a\x00b", "run=r/" + "a" * 300, "https://x/y", "a\\b"])
def test_a_key_that_leads_out_of_the_store_is_refused_by_readers_and_named_by_verify(whole, key, memory_path):
    (memory_path / "outside.parquet").write_bytes(codec.encode(table("prompts")))
    round = Round(whole, "r", 2)
    make_plan(round, 1)
    data = codec.encode(table("prompts"))
    file = ShardFile(key, "prompts", 3, len(data), documents.sha256(data))
    whole.put_if_absent(layout.receipt("r", 2, "prompts", 0),
                        pack("receipt", "r", 2, Receipt("prompts", 0, file, {}, {}, None)))
    with pytest.raises(IntegrityError, match="is not clean"):
        Round(whole, "r", 2).read("prompts")
    assert findings(whole) == {key: "unclean"}


def test_a_file_planted_beside_the_weights_is_named_and_not_loaded(whole):
    files = starting_checkpoint(whole, "r", 1)
    (whole.root / files.prefix / "adapter_config.json").write_text("{}")
    assert findings(whole) == {files.prefix + "adapter_config.json": "foreign"}
    with pytest.raises(IntegrityError, match="adapter_config.json lies in a checkpoint that does not name it"):
        local_checkpoint(whole, files)


def test_a_checkpoint_that_points_out_of_the_store_is_named_and_not_loaded(whole):
    files = CheckpointFiles("../outside/", "0" * 64, [])
    document = {**read_run(whole, "r"), "student_checkpoint": files.as_dict()}
    create_run(whole, "hostile", document)
    assert {finding.kind for finding in verify(whole, "hostile")} == {"unclean"}
    with pytest.raises(IntegrityError, match="is not clean"):
        local_checkpoint(whole, starting_checkpoint(whole, "hostile", 0))


def test_a_folder_that_is_no_run_is_named_and_an_absent_run_is_the_users_mistake(whole):
    (whole.root / "run=..x").mkdir()
    assert findings(whole) == {"run=..x": "unclean"}
    with pytest.raises(UserError, match="run nope is not in the store"):
        verify(whole, "nope")
