"""The store on S3, against a server on loopback."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from small_store import contents, make_plan, make_run, play_round, play_shard, table

from pipeline import kept
from storage import s3, scratch
from storage.errors import IntegrityError, MissingObject, UserError
from storage.lineage import lineage
from storage.objects import exists, local_path, open_store, store_exists
from storage.rounds import Round, committed_rounds, list_runs, local_checkpoint, starting_checkpoint
from storage.snapshot import take_snapshot
from storage.verify import verify
from tests.s3_server import s3_server


@pytest.fixture(scope="module")
def server():
    with s3_server() as application:
        yield application


@pytest.fixture
def store(server, request):
    server.fail = None
    yield open_store(f"s3://bucket/{request.node.name.split('[')[0]}", create=True)
    server.fail = None


def test_objects_are_put_once_got_listed_and_deleted(store, tmp_path):
    (tmp_path / "file").write_bytes(b"from a file")
    assert store.put_if_absent("run=a/b", b"first") and not store.put_if_absent("run=a/b", b"second")
    assert store.put_if_absent("run=a/c/d", tmp_path / "file") and not store.put_if_absent("run=a/c/d", b"x")
    assert (store.get("run=a/b"), store.get("run=a/c/d")) == (b"first", b"from a file")
    assert store.put_if_absent("empty", b"") and not store.put_if_absent("empty", b"x") and store.get("empty") == b""
    assert [(info.key, info.size) for info in store.list("run=a/")] == [("run=a/b", 5), ("run=a/c/d", 11)]
    assert [info.key for info in store.list("run")] == ["run=a/b", "run=a/c/d"]
    assert all(info.modified > 1e9 for info in store.list()) and list(store.list("nothing/")) == []
    assert store.folders() == ["run=a"] and store.folders("run=a/") == ["c"] and store.folders("nothing/") == []
    store.delete("run=a/b")
    store.delete("run=a/b")
    for missing in (lambda: store.get("run=a/b"), lambda: local_path(store, "x")):
        with pytest.raises(MissingObject):
            missing()


def test_local_copies_have_the_objects_bytes(store):
    store.put_if_absent("a/b/c", b"1")
    store.put_if_absent("a/d", b"2")
    first, second = (local_path(store, key) for key in ("a/b/c", "a/d"))
    assert (first.read_bytes(), second.read_bytes()) == (b"1", b"2") and first.parents[1] == second.parent


def test_a_large_object_is_put_in_parts_and_still_only_once(store, tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    data = bytes(12 << 20)
    (tmp_path / "large").write_bytes(data)
    assert store.put_if_absent("parts", data) and store.get("parts") == data
    assert not store.put_if_absent("parts", data[:-1] + b"x") and not store.put_if_absent("parts", tmp_path / "large")
    assert store.put_if_absent("from-file", tmp_path / "large") and store.get("from-file") == data


@pytest.mark.parametrize("size", [100, 12 << 20])
def test_of_eight_workers_one_wins(store, monkeypatch, size):
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    for number in range(2):
        with ThreadPoolExecutor(8) as pool:
            bodies = [bytes([worker]) * size for worker in range(8)]
            won = list(pool.map(lambda body: store.put_if_absent(f"race-{size}-{number}", body), bodies))
        assert won.count(True) == 1
        assert store.get(f"race-{size}-{number}") == bodies[won.index(True)]


def test_a_round_on_s3_has_the_bytes_of_a_round_on_disk(store, tmp_path, memory_path):
    local = open_store(memory_path / "store", create=True)
    for each in (store, local):
        make_run(each, "r", tmp_path / "base")
        play_round(each, "r", 0, tmp_path)
    assert {info.key: store.get(info.key) for info in store.list()} == contents(local.root)
    assert Round(store, "r", 0).read("score", 1).equals(table("score", 1))
    assert (local_checkpoint(store, starting_checkpoint(store, "r", 1)) / "model.safetensors").is_file()
    assert verify(store) == [] and take_snapshot(store).rounds() == [("r", 0, True)] and list_runs(store) == ["r"]
    assert len(lineage(store, starting_checkpoint(store, "r", 1).fingerprint)["rounds"]) == 1


def test_the_optimizer_is_fetched_only_where_it_is_read(store, server, tmp_path):
    make_run(store, "r", tmp_path / "base")
    files = starting_checkpoint(store, "r", 0)
    scratch.empty("s3")  # as in another process: nothing is here yet
    server.fetched.clear()
    folder = local_checkpoint(store, files)
    assert sorted(path.name for path in folder.iterdir()) == ["chat_template.jinja", "config.json", "model.safetensors"]
    assert any("/model.safetensors" in path for path in server.fetched)
    assert not any("/optimizer.safetensors" in path for path in server.fetched)
    assert (local_checkpoint(store, files, optimizer=True) / "optimizer.safetensors").is_file()
    assert any("/optimizer.safetensors" in path for path in server.fetched)


def test_a_file_planted_in_a_checkpoint_is_found_without_being_fetched(store, server, tmp_path):
    make_run(store, "r", tmp_path / "base")
    files = starting_checkpoint(store, "r", 0)
    store.put_if_absent(files.prefix + "adapter_model.safetensors", b"planted")
    server.fetched.clear()
    with pytest.raises(IntegrityError, match="adapter_model.safetensors lies in a checkpoint that does not name it"):
        local_checkpoint(store, files)
    assert not any("adapter" in path for path in server.fetched)


def test_whether_a_document_is_there_is_asked_without_its_bytes(store, server, tmp_path):
    make_run(store, "r", tmp_path / "base")
    play_round(store, "r", 0, tmp_path)
    server.fetched.clear()
    assert list_runs(store) == ["r"] and committed_rounds(store, "r") == [0] and Round(store, "r", 0).planned()
    assert not exists(store, "run=r/run.jso") and not exists(store, "run=r") and not exists(store, "run=q/run.json")
    assert not any(path.endswith(".json") for path in server.fetched)


def test_a_checkpoint_that_was_dropped_with_its_stage_is_fetched_and_checked_again(store, server, tmp_path):
    make_run(store, "r", tmp_path / "base")
    folder = local_checkpoint(store, starting_checkpoint(store, "r", 0))
    before = len(server.fetched)
    assert local_checkpoint(store, starting_checkpoint(store, "r", 0)) == folder
    weights = [path for path in server.fetched[before:] if path.endswith("model.safetensors")]
    kept.drop()
    assert not weights and not folder.exists()
    assert (local_checkpoint(store, starting_checkpoint(store, "r", 0)) / "model.safetensors").is_file()
    assert any(path.endswith("model.safetensors") for path in server.fetched[before:])


def test_what_is_left_of_a_stage_is_asked_in_one_request(store, server, tmp_path):
    make_run(store, "r", tmp_path / "base")
    round = Round(store, "r", 0)
    make_plan(round, 40)
    for shard in (7, 8):
        play_shard(round, "prompts", shard, tmp_path)
    before = server.requests
    assert round.pending("prompts") == [*range(7), *range(9, 40)]
    assert server.requests == before + 1


def test_a_server_that_does_its_work_and_then_answers_500_does_no_harm(store, server, tmp_path):
    server.fail = lambda number: number % 9 == 0
    make_run(store, "r", tmp_path / "base")
    play_round(store, "r", 0, tmp_path, shards=1)
    server.fail = None
    assert verify(store) == []


def test_stores_that_are_none_are_refused(store, server):
    store.put_if_absent("x/thesis.tex", b"x")
    for create in (False, True):
        with pytest.raises(UserError, match="is not a store"):
            open_store(store.url + "/x", create=create)
    assert not store_exists(store.url + "/y") and store_exists(store.url)
    for url in ("s3://", "s3://B/x", "s3://bucket/../x", "s3://bucket/a//b"):
        with pytest.raises((UserError, RuntimeError), match="is not"):
            open_store(url)


def test_a_bucket_that_is_not_there_and_missing_rights_are_told_in_one_line(server, monkeypatch):
    for create in (False, True):
        with pytest.raises(UserError, match="bucket nowhere does not exist"):
            open_store("s3://nowhere/x", create=create)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3.S3Store._filesystem().clear_instance_cache()
    with pytest.raises(UserError, match="no credentials"):
        open_store("s3://bucket/x", create=True)
    s3.S3Store._filesystem().clear_instance_cache()


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"needs the extra s3: pip install 'opd-rounds\[s3\]'"):
        open_store("s3://bucket/x")
