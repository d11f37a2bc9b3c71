"""`opd catalog`: a file that plain DuckDB opens read-only and that answers as `opd sql` does."""

import json
import re
import resource
import struct
import subprocess
import sys
from pathlib import Path

import duckdb
import made_rounds as made
import pytest

from flows.cli import main
from storage import catalog, s3, sqlfiles
from storage.catalog_file import write_catalog
from storage.objects import open_store
from storage.rounds import create_run
from storage.snapshot import take_snapshot
from tests.s3_server import s3_server

ROOT = Path(__file__).parents[2]
RESPONSES = {1: [5, 6, 7], 2: [5, 5]}
PLAIN = """
import json, sys
import duckdb
connection = duckdb.connect(sys.argv[1], read_only=True)
connection.execute("SET threads = 1")
for query in json.load(sys.stdin):
    try:
        found = connection.sql(query).fetchall()
        print(json.dumps([connection.sql("DESCRIBE " + query).project("column_name, column_type").fetchall(), found],
                         default=str))
    except duckdb.Error as error:
        print(json.dumps(["error", str(error)]))
assert not any(name.split(".")[0] in ("storage", "sql", "flows", "pipeline") for name in sys.modules)
"""
"""A client that knows nothing of this package."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Run left with two rounds, run right with one and another in progress."""
    folder = tmp_path_factory.mktemp("catalogued")
    store = open_store(folder / "store", create=True)
    for run, committed in (("left", 2), ("right", 1)):
        made.start_run(store, folder, run, tokenizer='{"model": {"type": "BPE", "vocab": {"the": 5, "end": 7}}}')
        for number in range(committed):
            scored = made.tokens(RESPONSES, teacher_log_prob=[-1.0, -2.0, -3.0, -0.5, -0.25],
                                 teacher_rank=[1, 2, 9, 1, 1])
            weights = made.mask(scored, [0.0, 1.0, 0.5, 0.0, 1.0], [["a", "b"], [], ["b"], ["b"], []])
            round = made.commit_round(store, folder, run, number, [(made.rollouts(RESPONSES), scored)], [weights],
                                      answers=[made.graded("student", {7: [True, False], 8: [False, False]})])
            round.note_timing("score", 0, {"seconds": 2.0, "rows": 5, "host": "here", "pid": 7})
    made.begin_round(store, "right", 1, [(made.rollouts({3: [9]}), made.tokens({3: [9]}))])
    return store


@pytest.fixture(scope="module")
def snapshot(store):
    return take_snapshot(store, in_progress=True)


@pytest.fixture(scope="module")
def file(store, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("files") / "opd.duckdb"
    assert main(["catalog", str(target), "--store", store.url]) == 0
    return target


def plain(file: Path, *queries: str) -> list:
    """[names and types, rows] of each query, asked by plain DuckDB in another process; ["error", text] of a failure."""
    run = subprocess.run([sys.executable, "-I", "-c", PLAIN, str(file)], input=json.dumps(queries), text=True,
                         capture_output=True, cwd="/")
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def ours(connection, query: str) -> list:
    """The same from our own connection."""
    described = catalog.query(connection, f"DESCRIBE {query}").select(["column_name", "column_type"])
    rows = [list(row.values()) for row in catalog.query(connection, query).to_pylist()]
    return json.loads(json.dumps([[list(row.values()) for row in described.to_pylist()], rows], default=str))


def write(store, file, **options) -> Path:
    write_catalog(store, take_snapshot(store, in_progress=True), file, **options)
    return file


def refused(capsys, *arguments, said: str) -> None:
    assert main(["catalog", *map(str, arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("opd: ") and said in error and "\n" not in error, error


# --- what it answers ---


def test_every_view_and_report_answers_as_opd_sql_does(store, snapshot, file):
    texts = {name: sqlfiles.load("reports", name).text.rstrip().rstrip(";") for name in sqlfiles.names("reports")
             if not sqlfiles.load("reports", name).parameters}
    views = [f"FROM {view} ORDER BY ALL" for view in catalog.VIEWS]
    asked = [*views, *texts.values(), *(f"FROM {name}" for name in texts)]
    with catalog.connect(store, snapshot, threads=1) as connection:
        expected = [ours(connection, query) for query in [*views, *texts.values(), *texts.values()]]
    answered = plain(file, *asked)
    for _, rows in answered[-len(texts):] + expected[-len(texts):]:
        rows.sort(key=str)  # a view promises no order
    for query, theirs, same in zip(asked, answered, expected, strict=True):
        assert theirs == same, query


def test_the_answers_are_those_computed_by_hand(file):
    (_, tokens), (_, gaps), (_, overlap), (_, accuracy) = plain(
        file, "SELECT run, round, count(*) FROM tokens GROUP BY ALL ORDER BY ALL",
        "SELECT round, list(position ORDER BY position) FROM tokens WHERE run = 'left' AND teacher_log_prob = -2 "
        "GROUP BY ALL ORDER BY ALL",
        "SELECT overlap_ratio([1, 2, 3, 4], [2, 1]), overlap_mass([1, 2], [2, 9], [0.0, -1.0]), "
        "position_bucket(130, 64), mass_inside(0.0)",
        "SELECT run, avg_at_k, pass_at_k FROM accuracy WHERE round = 0 ORDER BY run")
    assert tokens == [["left", 0, 5], ["left", 1, 5], ["right", 0, 5], ["right", 1, 1]]
    assert gaps == [[0, [1]], [1, [1]]]
    assert overlap == [[1.0, 1.0, 128, 0.0]]
    assert accuracy == [["left", 0.25, 0.5], ["right", 0.25, 0.5]]


def test_it_says_what_it_was_made_from(store, snapshot, file):
    (names, rows), = plain(file, "SELECT * EXCLUDE (opd_version) FROM opd_catalog ORDER BY ALL")
    ids = {(run, number): snapshot.manifest(run, number).id for run, number in (("left", 0), ("left", 1), ("right", 0))}
    assert [name for name, _ in names] == ["store", "run", "round", "committed", "manifest_id", "shards"]
    assert rows == [[store.url, "left", 0, True, ids["left", 0], 6], [store.url, "left", 1, True, ids["left", 1], 6],
                    [store.url, "right", 0, True, ids["right", 0], 6], [store.url, "right", 1, False, None, 3]]


def test_headers_are_comments_that_any_client_shows(file):
    (_, views), (_, columns), (_, macros) = plain(
        file, "SELECT comment FROM duckdb_views() WHERE view_name IN ('rollouts', 'worst_tokens') "
        "AND schema_name = 'main' ORDER BY view_name",
        "SELECT comment FROM duckdb_columns() WHERE table_name = 'tokens' AND column_name = 'teacher_entropy' "
        "AND schema_name = 'main'",
        "SELECT comment FROM duckdb_functions() WHERE function_name = 'mass_inside'")
    assert views[0] == ["what the student wrote. Grain: run, round, rollout_id"]
    assert views[1][0].startswith("the ten sampled tokens that the teacher finds least likely")
    assert columns == [["nats"]]
    assert macros == [["probability mass inside a support, from the log mass outside it."]]


def test_only_what_was_asked_for_is_in_it(store, tmp_path, capsys):
    target = str(tmp_path / "one.duckdb")
    assert main(["catalog", target, "--store", store.url, "--run", "right", "--committed", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["runs"], told["rounds"], told["shards"]) == (["right"], 1, 6)
    assert told["bytes"] == (tmp_path / "one.duckdb").stat().st_size
    (_, rows), = plain(tmp_path / "one.duckdb", "SELECT DISTINCT run, round FROM tokens")
    assert rows == [["right", 0]]


def test_a_store_without_rounds_has_all_views_and_no_rows(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    file = write(store, tmp_path / "empty.duckdb")
    views = [f"SELECT count(*) FROM {view}" for view in catalog.VIEWS]
    assert [rows for _, rows in plain(file, *views)] == [[[0]]] * len(views)
    create_run(store, "begun", {"config": {"rounds": 1}})
    about = "SELECT store, run, round, shards FROM opd_catalog"
    assert plain(file, about)[0][1] == [[store.url, None, None, None]]
    assert plain(write(store, tmp_path / "begun.duckdb"), about)[0][1] == [[store.url, "begun", None, None]]


def test_it_stays_what_it_was_while_the_store_goes_on(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    made.start_run(store, tmp_path)
    parts = [(made.rollouts(RESPONSES), made.tokens(RESPONSES))]
    made.commit_round(store, tmp_path, "made", 0, parts)
    file = write(store, tmp_path / "first.duckdb")
    made.commit_round(store, tmp_path, "made", 1, parts)
    count = "SELECT count(*), max(round) FROM tokens"
    assert plain(file, count)[0][1] == [[5, 0]]
    assert plain(write(store, file, force=True), count)[0][1] == [[10, 1]]


# --- who can open it, and what they cannot do ---


def test_it_is_written_for_the_oldest_clients(file):
    """Bytes 8 to 11 are DUCK; then the storage version: 64 is the one of DuckDB 0.9.2 to 1.1."""
    header = file.read_bytes()[:20]
    assert header[8:12] == b"DUCK" and struct.unpack("<Q", header[12:20]) == (64,)
    assert file.stat().st_size < 1_000_000


@pytest.mark.parametrize("kind", ["views", "macros", "reports"])
def test_no_file_uses_sql_that_only_duckdb_2_knows(kind):
    """As a function, `if` is not in the catalog of DuckDB 1: a view that holds it binds there no more."""
    for name in sqlfiles.names(kind):
        assert not re.search(r"\bif\(", sqlfiles.load(kind, name).text, re.IGNORECASE), name


def test_a_client_cannot_write_into_it(file):
    before = file.read_bytes()
    for kind, text in plain(file, "CREATE TABLE x AS SELECT 1",
                            "INSERT INTO raw.rounds VALUES ('x', 0, true, 'y', 'x')",
                            "DROP VIEW tokens", "UPDATE opd_catalog SET run = 'x'"):
        assert kind == "error" and "read-only" in text
    assert file.read_bytes() == before
    assert [each.name for each in file.parent.iterdir()] == ["opd.duckdb"]


def test_it_can_be_attached_under_another_name(file):
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{file}' AS cache (READ_ONLY)")
        assert connection.sql("SELECT count(*) FROM cache.tokens").fetchall() == [(16,)]
        assert connection.sql("SELECT count(*) FROM cache.masked_by_reason").fetchall() == [(6,)]
        assert connection.sql("SELECT count(*), count(reward_auroc), sum(tokens) FROM cache.task_metrics"
                              ).fetchall() == [(4, 0, 16)]
        connection.execute("USE cache")
        assert connection.sql("SELECT overlap_ratio([1, 2], [2, 9])").fetchall() == [(0.5,)]


def test_a_client_that_has_the_old_file_open_keeps_it(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    made.start_run(store, tmp_path)
    file = write(store, tmp_path / "opd.duckdb")
    with duckdb.connect(str(file), read_only=True) as old:
        made.commit_round(store, tmp_path, "made", 0, [(made.rollouts(RESPONSES), made.tokens(RESPONSES))])
        write(store, file, force=True)
        assert old.sql("SELECT count(*) FROM tokens").fetchall() == [(0,)]
        assert plain(file, "SELECT count(*) FROM tokens")[0][1] == [[5]]
        assert old.sql("SELECT count(*) FROM raw.rounds").fetchall() == [(0,)]


@pytest.mark.parametrize("name, decoy", [("a'b; DROP", None), ("brackets[0-9]*", "brackets0x"), ("what?", "whats"),
                                         ("a]b[", None), ("space and ünï", None), ("$x `y` \"z\"", None)])
def test_a_store_may_lie_in_a_folder_of_any_name(tmp_path, name, decoy):
    for folder in filter(None, (name, decoy)):
        store = open_store(tmp_path / folder / "store", create=True)
        (tmp_path / "of" / folder).mkdir(parents=True)
        made.start_run(store, tmp_path / "of" / folder)
        made.begin_round(store, "made", 0, [(made.rollouts(RESPONSES), made.tokens(RESPONSES))])
    store = open_store(tmp_path / name / "store")
    count = "SELECT run, round, count(*) AS n FROM tokens GROUP BY ALL"
    assert plain(write(store, tmp_path / f"{name}.duckdb"), count)[0][1] == [["made", 0, 5]]


@pytest.mark.parametrize("run", ["x'; DROP TABLE raw.rounds --", "..", "A", "x y", "-x"])
def test_a_run_with_a_hostile_name_is_not_a_run(tmp_path, run):
    store = open_store(tmp_path / "store", create=True)
    made.start_run(store, tmp_path, "clean")
    (store.root / f"run={run}").mkdir()
    (store.root / f"run={run}" / "run.json").write_bytes((store.root / "run=clean" / "run.json").read_bytes())
    file = write(store, tmp_path / "opd.duckdb")
    assert plain(file, "SELECT run FROM opd_catalog")[0][1] == [["clean"]]
    assert main(["catalog", str(tmp_path / "two.duckdb"), "--store", store.url, f"--run={run}"]) == 2
    assert not (tmp_path / "two.duckdb").exists()


def test_a_store_that_moved_is_told_by_duckdb_in_one_line(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    made.start_run(store, tmp_path)
    made.begin_round(store, "made", 0, [(made.rollouts(RESPONSES), made.tokens(RESPONSES))])
    file = write(store, tmp_path / "opd.duckdb")
    (tmp_path / "store").rename(tmp_path / "moved")
    (kind, text), (_, rounds) = plain(file, "SELECT count(*) FROM tokens", "SELECT count(*) FROM raw.rounds")
    assert kind == "error" and str(tmp_path / "store/run=made/round=0/tokens") in text.splitlines()[0]
    assert rounds == [[1]]


def test_an_object_store_is_read_with_the_clients_own_access(tmp_path, capsys):
    with s3_server():
        store = open_store("s3://bucket/a+b/store", create=True)
        made.start_run(store, tmp_path)
        made.commit_round(store, tmp_path, "made", 0, [(made.rollouts(RESPONSES), made.tokens(RESPONSES))])
        assert main(["catalog", str(tmp_path / "far.duckdb"), "--store", store.url]) == 0
        assert "the client needs httpfs" in capsys.readouterr().out
        with duckdb.connect(str(tmp_path / "far.duckdb"), read_only=True,
                            config={"autoinstall_known_extensions": False}) as client:
            with pytest.raises(duckdb.Error, match="httpfs"):
                client.sql("SELECT count(*) FROM tokens").fetchall()
            client.register_filesystem(s3.S3Store._filesystem())
            assert client.sql("SELECT run, round, count(*) FROM tokens GROUP BY ALL").fetchall() == [("made", 0, 5)]
            assert client.sql("SELECT any_value(store) FROM opd_catalog").fetchall() == [(store.url,)]


# --- what is refused ---


@pytest.mark.parametrize("target, said", [
    ("taken.duckdb", "exists already"), ("raw.duckdb", "could not be told from the schema raw"),
    ("Raw.db", "could not be told from the schema raw"), ("absent/x.duckdb", "does not exist: make it"),
    ("store/x.duckdb", "lies inside the store"), ("", "is a folder"), ("link.duckdb", "a link"),
    ("logged.duckdb", "logged.duckdb.wal lies there"),
])
def test_a_place_for_it_that_is_none_is_refused(tmp_path, capsys, target, said):
    open_store(tmp_path / "store", create=True)
    (tmp_path / "taken.duckdb").write_text("precious")
    (tmp_path / "logged.duckdb.wal").write_text("log")
    (tmp_path / "link.duckdb").symlink_to(tmp_path / "taken.duckdb")
    before = sorted(tmp_path.rglob("*"))
    refused(capsys, tmp_path / target, "--store", tmp_path / "store", said=said)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "taken.duckdb").read_text() == "precious"


def test_what_is_no_store_or_no_run_is_refused(store, tmp_path, capsys):
    refused(capsys, tmp_path / "x.duckdb", "--store", tmp_path, said="is not a store")
    refused(capsys, tmp_path / "x.duckdb", "--store", tmp_path / "absent", said="does not exist")
    refused(capsys, tmp_path / "x.duckdb", "--store", store.url, "--run", "middle", said="it has left, right")
    refused(capsys, "/proc/x.duckdb", "--store", store.url, said="/proc/x.duckdb cannot be written")
    refused(capsys, "s3://bucket/x.duckdb", "--store", store.url, said="not a file of this machine")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_runs_full_leaves_the_old_file_and_nothing_half_written(store, tmp_path):
    (tmp_path / "opd.duckdb").write_text("the old one")
    command = [sys.executable, "-m", "flows.cli", "catalog", str(tmp_path / "opd.duckdb"), "--store", store.url]
    run = subprocess.run([*command, "--force"], cwd=ROOT, capture_output=True, text=True,
                         preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)))
    assert run.returncode == 2 and "cannot be written" in run.stderr and run.stderr.count("\n") == 1, run.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["opd.duckdb"]
    assert (tmp_path / "opd.duckdb").read_text() == "the old one"
