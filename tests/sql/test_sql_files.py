"""Every SQL file that ships: it loads, it is one object named like the file, and its header says what it returns."""

import math

import made_rounds as made
import pytest

from storage import catalog, sqlfiles
from storage.checks import CHECKS
from storage.errors import UserError
from storage.objects import open_store
from storage.snapshot import take_snapshot

FILES = [(kind, name) for kind in sqlfiles.KINDS for name in sqlfiles.names(kind)]


@pytest.fixture(scope="module")
def connection(tmp_path_factory):
    store = open_store(tmp_path_factory.mktemp("files") / "store", create=True)
    return catalog.connect(store, take_snapshot(store))


@pytest.mark.parametrize("kind,name", FILES)
def test_a_file_opens_with_its_name_grain_and_columns(kind, name):
    file = sqlfiles.load(kind, name)
    assert file.header[0].startswith((f"{name}:", f"{name}("))
    assert any(line.startswith("grain: ") for line in file.header)
    assert file.columns and all(file.columns.values())
    assert all(len(line) <= 120 for line in file.text.splitlines())


@pytest.mark.parametrize("name", sqlfiles.names("views"))
def test_a_views_header_lists_its_columns_in_order(connection, name):
    assert list(sqlfiles.load("views", name).columns) == catalog.query(connection, f"FROM {name}").column_names


@pytest.mark.parametrize("kind,name", [file for file in FILES if file[0] in ("reports", "checks")])
def test_a_report_or_check_returns_what_its_header_lists(connection, kind, name):
    file = sqlfiles.load(kind, name)
    found = catalog.query(connection, file.text, dict.fromkeys(file.parameters))
    assert found.column_names == list(file.columns)


@pytest.mark.parametrize("name", sqlfiles.names("macros"))
def test_a_macro_takes_the_parameters_that_its_header_lists(connection, name):
    found = catalog.query(connection, "SELECT parameters FROM duckdb_functions() WHERE function_name = ?", [name])
    listed = [column for column in sqlfiles.load("macros", name).columns if column != "(result)"]
    assert found["parameters"].to_pylist() == [listed]


def test_every_check_has_its_place_in_the_order():
    assert sorted(CHECKS) == sqlfiles.names("checks")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="no 'gap' in sql/reports: it has .*gap_by_position, "):
        sqlfiles.load("reports", "gap")


# --- macros ---


@pytest.mark.parametrize("sql,answer", [
    ("position_bucket(0, 64)", 0), ("position_bucket(63, 64)", 0), ("position_bucket(64, 64)", 64),
    ("overlap_count([1, 2, 3, 4], [2, 9])", 1),
    ("overlap_count([1, 2, 3, 4], [3, 1])", 1),  # 3 is the teacher's third: outside its first two
    ("overlap_count([1, 2], [1, 9, 2, 8])", 1),  # 2 is the student's third
    ("overlap_ratio([1, 2, 3, 4], [2, 1])", 1.0),
    ("overlap_mass([1, 2, 3, 4], [2, 9], [ln(.5), ln(.25)])", 0.5),
    ("overlap_mass([1, 2, 3, 4], [8, 9], [ln(.5), ln(.25)])", 0.0),
    ("reverse_kl_topk([ln(.5), ln(.25)], [ln(.25), ln(.5)])", 0.25 * math.log(2)),  # the rests are alike
    ("reverse_kl_topk([ln(.5)], [ln(.25)])", 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)),
    ("reverse_kl_topk([ln(.75), ln(.25)], [ln(.75), ln(.25)])", 0.0),  # nothing outside
    ("overlap_token_advantage([1, 2], [8, 9], [-1.0, -2.0], [-1.0, -2.0])", None),
    ("overlap_token_advantage([1, 2], [2, 1], [-1.0, -2.0], [-2.0, -3.0])", 0.0),  # renormalised, they agree
])
def test_a_macro_gives_the_answer_computed_by_hand(connection, sql, answer):
    found = catalog.query(connection, f"SELECT {sql} AS answer")["answer"][0].as_py()
    assert found == (answer if answer is None else pytest.approx(answer, abs=1e-12))


# --- reports ---


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Two rounds of 70 and 2 tokens; token 65 of the first has by far the worst gap."""
    folder = tmp_path_factory.mktemp("reported")
    store = open_store(folder / "store", create=True)
    made.start_run(store, folder, tokenizer='{"model": {"type": "BPE", "vocab": {"\\u0120the": 8}},'
                                            ' "decoder": {"type": "ByteLevel"},'
                                            ' "added_tokens": [{"id": 9, "content": "<|im_end|>"}]}')
    first, second = {1: [8] * 65 + [9] + [8] * 4}, {2: [8, 8]}
    gaps = [-1.0] * 64 + [-3.0, -40.0, -3.0, -3.0, -3.0, -3.0]
    scored = made.tokens(first, student_log_prob=[0.0] * 70, teacher_log_prob=gaps)
    weights = made.mask(scored, [1.0] * 64 + [0.5, 0.0] + [1.0] * 4, [[]] * 64 + [["late"], ["late", "eos"]] + [[]] * 4)
    made.commit_round(store, folder, "made", 0, [(made.rollouts(first), scored)], [weights])
    later = made.tokens(second, student_topk_ids=[[8, 102], [8, 101]])
    made.begin_round(store, "made", 1, [(made.rollouts(second), later)])
    return catalog.connect(store, take_snapshot(store, in_progress=True))


def report(connection, name):
    return catalog.query(connection, sqlfiles.load("reports", name).text).to_pylist()


def test_the_gap_is_reported_by_64_token_bucket_and_round(reported):
    rows = [(row["round"], row["first_position"], row["tokens"], row["mean_gap"])
            for row in report(reported, "gap_by_position")]
    assert rows == [(0, 0, 64, -1.0), (0, 64, 6, -55 / 6), (1, 0, 2, 0.0)]


def test_the_ten_worst_tokens_come_worst_first_with_their_text(reported):
    rows = report(reported, "worst_tokens")
    assert len(rows) == 10
    assert (rows[0]["position"], rows[0]["token_text"], rows[0]["gap"]) == (65, "<|im_end|>", -40.0)
    assert [row["position"] for row in rows[1:7]] == [64, 66, 67, 68, 69, 0]
    assert rows[1]["token_text"] == " the"


def test_masked_tokens_are_counted_per_reason(reported):
    assert report(reported, "masked_by_reason") == [
        {"run": "made", "round": 0, "reason": "late", "tokens": 2, "masked": 1, "share": 2 / 70},
        {"run": "made", "round": 0, "reason": "eos", "tokens": 1, "masked": 1, "share": 1 / 70}]


def test_the_overlap_is_reported_per_round(reported):
    rows = report(reported, "overlap_by_round")
    assert [(row["round"], row["overlap_ratio"]) for row in rows] == [(0, 1.0), (1, 0.75)]
