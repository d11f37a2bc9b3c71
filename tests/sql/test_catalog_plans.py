"""What a query opens: read from DuckDB's own plan, over many rounds."""

import json

import made_rounds as made
import pytest

from storage import catalog, codec, documents, layout
from storage.objects import open_store
from storage.records import ShardFile
from storage.snapshot import RoundFiles, Snapshot

ROUNDS = 200
RESPONSES = {1: [5, 6, 7]}


@pytest.fixture(scope="module", params=["direct", "verified"])
def many(request, tmp_path_factory):
    """200 rounds of two runs, a file per table and round."""
    store = open_store(tmp_path_factory.mktemp("many") / "store", create=True)
    tables = {"rollouts": made.rollouts(RESPONSES), "tokens": made.tokens(RESPONSES),
              "mask": made.mask(made.tokens(RESPONSES)), "steps": made.steps()}
    encoded = {name: codec.encode(table) for name, table in tables.items()}

    def files(run, number):
        return {name: [lay(store, run, number, name, data, tables[name].num_rows)] for name, data in encoded.items()}

    places = [(run, number) for run in ("left", "right") for number in range(ROUNDS // 2)]
    snapshot = Snapshot(store, {}, {place: RoundFiles(*place, files(*place)) for place in places})
    return catalog.connect(store, snapshot, verified=request.param == "verified")


def lay(store, run, number, table, data, rows):
    """Write a shard without the commit protocol, which syncs every file."""
    sha256 = documents.sha256(data)
    key = layout.shard(run, number, table, 0, sha256, "abcdef01")
    path = store.root / key
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return ShardFile(key, table, rows, len(data), sha256)


def scans(connection, sql):
    """(table folder, columns read, number of files, the first few of them) of every Parquet scan that opened one."""
    plan = catalog.query(connection, f"EXPLAIN (ANALYZE, FORMAT json) {sql}")["explain_value"][0].as_py()
    return sorted(found(json.loads(plan)))


def found(node):
    if isinstance(node, list):
        return [scan for child in node for scan in found(child)]
    if not isinstance(node, dict):
        return []
    info = node.get("extra_info")
    if isinstance(info, dict) and info.get("Function") == "READ_PARQUET":
        columns, files = info.get("Projections", []), info.get("Filename(s)", "").split(", ")
        if not int(info["Total Files Read"]):
            return []
        table = files[0].split("/round=")[1].split("/")[1]
        return [(table, columns if isinstance(columns, list) else [columns], int(info["Total Files Read"]), files)]
    return [scan for child in node.values() for scan in found(child)]


def test_one_round_scans_one_rounds_files(many):
    [(table, columns, count, files)] = scans(many, "SELECT avg(gap) FROM tokens WHERE run = 'left' AND round = 42")
    assert table == "tokens" and set(columns) == {"teacher_log_prob", "student_log_prob"}
    assert count == 1 and "/run=left/round=42/" in files[0]


def test_the_same_round_of_all_runs_scans_one_file_each(many):
    found = scans(many, "SELECT count(gap) FROM tokens WHERE round = 42")
    assert [count for _, _, count, _ in found] == [1, 1]
    assert all("/round=42/" in file for *_, files in found for file in files)


def test_a_range_of_rounds_scans_that_range(many):
    sql = "SELECT count(gap) FROM tokens WHERE run = 'right' AND round BETWEEN 10 AND 19"
    assert [count for _, _, count, _ in scans(many, sql)] == [10]


@pytest.mark.parametrize("view", ["rollouts", "tokens", "masked_tokens", "topk", "steps", "rounds", "task_metrics",
                                  "position_metrics"])
def test_every_view_leaves_other_rounds_alone(many, view):
    found = scans(many, f"SELECT * FROM {view} WHERE run = 'left' AND round = 7")
    assert found and all(count == 1 and "/run=left/round=7/" in files[0] for _, _, count, files in found)


def test_a_join_of_two_views_leaves_other_rounds_alone(many):
    sql = ("SELECT avg(t.gap) FROM tokens t JOIN rollouts r USING (run, round, rollout_id) "
           "WHERE run = 'left' AND round = 7 AND r.reward > 0")
    assert {table: count for table, _, count, _ in scans(many, sql)} == {"rollouts": 1, "tokens": 1}


ALWAYS = {"filename", "task", "position", "rollout_id", "student_log_prob", "teacher_log_prob"}
"""What a view of metrics reads for its rows and for reward_auroc: .03 s per million tokens."""


@pytest.mark.parametrize("view", ["rounds", "task_metrics", "position_metrics"])
@pytest.mark.parametrize("column, read", [
    ("mean_gap", set()), ("teacher_mass", {"teacher_log_tail"}), ("rollout_ess", {"rollout_log_prob"}),
    ("overlap_ratio", {"teacher_topk_ids", "student_topk_ids"}),
    ("reverse_kl", {"student_topk_log_probs", "teacher_log_probs_at_student_topk"})])
def test_metrics_read_lists_only_where_a_column_needs_them(many, view, column, read):
    found = scans(many, f"SELECT {column} FROM {view} WHERE run = 'left' AND round = 7")
    assert {name for table, columns, *_ in found if table == "tokens" for name in columns} - ALWAYS == read
    assert not [columns for table, columns, *_ in found if table == "rollouts" and "response_tokens" in columns]


def test_the_answer_over_all_rounds_counts_every_file(many):
    table = catalog.query(many, "SELECT run, count(*) AS n, count(DISTINCT round) AS rounds FROM tokens GROUP BY run "
                                "ORDER BY run")
    assert table.to_pylist() == [{"run": run, "n": 3 * ROUNDS // 2, "rounds": ROUNDS // 2} for run in ("left", "right")]


def test_a_branch_shares_its_parents_files_and_reads_as_itself(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    data = codec.encode(made.tokens(RESPONSES))
    parent = [lay(store, "parent", number, "tokens", data, 3) for number in range(3)]
    rounds = {("parent", number): RoundFiles("parent", number, {"tokens": [parent[number]]}) for number in range(3)}
    own = lay(store, "branch", 1, "tokens", data, 3)
    rounds |= {("branch", 0): RoundFiles("branch", 0, {"tokens": [parent[0]]}),
               ("branch", 1): RoundFiles("branch", 1, {"tokens": [own, parent[1]]})}
    connection = catalog.connect(store, Snapshot(store, {}, rounds))
    found = catalog.query(connection, "SELECT run, round, count(*) AS n FROM tokens GROUP BY ALL ORDER BY ALL")
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        ("branch", 0, 3), ("branch", 1, 6), ("parent", 0, 3), ("parent", 1, 3), ("parent", 2, 3)]
    [(_, _, count, files)] = scans(connection, "SELECT count(gap) FROM tokens WHERE run = 'branch' AND round = 0")
    assert (count, files) == (1, [str(store.root / parent[0].key)])
