"""avg@k, pass@k, their intervals and gap recovery: answers computed by hand, Wilson's also from its published form."""

import math

import made_rounds as made
import pytest

from storage import catalog
from storage.objects import open_store
from storage.snapshot import take_snapshot

FIRST = {1: [True, False], 2: [False, False], 3: [True, True], 4: [False, False]}
"""3 of 8 answers are right, 2 of 4 problems have one."""


def wilson(share: float, trials: int) -> list[float]:
    """Roots of |share - x| = z sqrt(x (1 - x) / trials): what the interval is, not how the macro computes it."""
    z2 = 1.959964 ** 2 / trials
    a, b, c = 1 + z2, -(2 * share + z2), share ** 2
    root = math.sqrt(b * b - 4 * a * c)
    return [(-b - root) / (2 * a), (-b + root) / (2 * a)]


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Two benchmarks; round 0 with the ends of the gap, round 1, and a second run without a gap."""
    folder = tmp_path_factory.mktemp("graded")
    store = open_store(folder / "store", create=True)
    parts = [(made.rollouts({1: [5]}), made.tokens({1: [5]}))]
    made.start_run(store, folder)
    right, wrong = {1: [True], 2: [True]}, {1: [False], 2: [False]}
    made.commit_round(store, folder, "made", 0, parts, answers=[
        made.graded("start", FIRST), made.graded("start", wrong, "words"),
        made.graded("teacher", {key: [True, True] for key in FIRST}), made.graded("teacher", right, "words"),
        made.graded("student", FIRST, finish_reason=["length"] * 2 + ["stop"] * 6),
        made.graded("student", {1: [True], 2: [False]}, "words")])
    made.commit_round(store, folder, "made", 1, parts, answers=[
        made.graded("student", {key: [True, True] for key in FIRST}), made.graded("student", right, "words")])
    made.start_run(store, folder, "level")
    made.commit_round(store, folder, "level", 0, parts, answers=[
        made.graded(role, FIRST) for role in ("start", "teacher", "student")])
    made.start_run(store, folder, "worse")
    none = {key: [False, False] for key in FIRST}
    made.commit_round(store, folder, "worse", 0, parts, answers=[
        made.graded("start", FIRST), made.graded("teacher", none), made.graded("student", none)])
    third = made.begin_round(store, "made", 2, parts, answers=2)
    third.finish("evaluate", 0, "evaluation", made.graded("student", FIRST), inputs={})
    return catalog.connect(store, take_snapshot(store, in_progress=True))


def ask(connection, sql: str) -> list[dict]:
    return catalog.query(connection, sql).to_pylist()


def test_accuracy_counts_answers_and_problems(graded):
    (row,) = ask(graded, "FROM accuracy WHERE run = 'made' AND round = 0 AND role = 'student' AND task = 'sums'")
    assert (row["problems"], row["samples"], row["k"]) == (4, 8, 2)
    assert (row["avg_at_k"], row["pass_at_k"], row["truncation_rate"]) == (3 / 8, 2 / 4, 2 / 8)
    assert [row["avg_at_k_low"], row["avg_at_k_high"]] == pytest.approx(wilson(3 / 8, 4))
    assert [row["pass_at_k_low"], row["pass_at_k_high"]] == pytest.approx(wilson(2 / 4, 4))


def test_gap_recovery_is_the_share_of_the_way_from_start_to_teacher_over_the_mean_of_benchmarks(graded):
    """Start (3/8 + 0) / 2, teacher 1; after round 0 (3/8 + 1/2) / 2, after round 1 all."""
    first, second = ask(graded, "FROM rounds WHERE run = 'made' AND committed ORDER BY round")
    assert [row["avg_at_k"] for row in (first, second)] == [7 / 16, 1.0]
    assert {(row["start_avg_at_k"], row["teacher_avg_at_k"]) for row in (first, second)} == {(3 / 16, 1.0)}
    assert [row["gap_recovery"] for row in (first, second)] == pytest.approx([4 / 13, 1.0])
    assert (first["pass_at_k"], first["evaluated"], first["evaluation_truncation_rate"]) == (1 / 2, 10, 2 / 10)


def test_without_a_gap_there_is_no_recovery(graded):
    rows = ask(graded, "SELECT run, avg_at_k, gap_recovery FROM rounds WHERE run IN ('level', 'worse') ORDER BY run")
    assert [tuple(row.values()) for row in rows] == [("level", 3 / 8, None), ("worse", 0, None)]


def test_an_evaluation_in_progress_is_in_accuracy_and_not_yet_in_rounds(graded):
    """One of two benchmarks is graded: its mean beside the start's over both would be no recovery of anything."""
    assert ask(graded, "SELECT task, samples FROM accuracy WHERE run = 'made' AND round = 2") == [
        {"task": "sums", "samples": 8}]
    (row,) = ask(graded, "SELECT avg_at_k, gap_recovery, teacher_avg_at_k FROM rounds WHERE run = 'made' AND round = 2")
    assert row == {"avg_at_k": None, "gap_recovery": None, "teacher_avg_at_k": 1.0}


def test_the_report_lists_start_rounds_and_teacher_in_this_order(graded):
    from storage.sqlfiles import load

    rows = ask(graded, load("reports", "accuracy_by_round").text)
    shown = [row for row in rows if (row["run"], row["task"]) == ("made", "sums")]
    assert [(row["role"], row["round"]) for row in shown] == [
        ("start", 0), ("student", 0), ("student", 1), ("student", 2), ("teacher", 0)]
    assert [row["gap_recovery"] for row in shown] == [0.0, 0.0, 1.0, 0.0, 1.0]  # (3/8 - 3/8) / (1 - 3/8), ...
    assert {row["gap_recovery"] for row in rows if row["run"] in ("level", "worse")} == {None}


def test_the_checkpoint_of_an_answer_is_that_of_its_model(graded):
    rows = ask(graded, "SELECT DISTINCT round, role, checkpoint FROM evaluations WHERE run = 'made' ORDER BY ALL")
    assert [tuple(row.values()) for row in rows] == [(0, "start", 0), (0, "student", 1), (0, "teacher", None),
                                                     (1, "student", 2), (2, "student", 3)]


@pytest.mark.parametrize("samples, correct, k", [(4, 0, 1), (4, 1, 1), (4, 1, 2), (4, 2, 2), (4, 3, 2), (4, 4, 4),
                                                 (16, 5, 3), (64, 1, 64), (200, 3, 100)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_answer(graded, samples, correct, k):
    (row,) = ask(graded, f"SELECT pass_at_k({samples}, {correct}, {k}) AS found")
    assert row["found"] == pytest.approx(1 - math.comb(samples - correct, k) / math.comb(samples, k), abs=1e-12)


def test_pass_at_k_of_fewer_answers_than_k_is_unknown(graded):
    assert ask(graded, "SELECT pass_at_k(3, 2, 4) AS found") == [{"found": None}]


@pytest.mark.parametrize("share, trials", [(0.0, 10), (1.0, 10), (0.5, 1), (0.31, 200)])
def test_wilsons_interval_is_the_one_of_its_quadratic_and_stays_in_the_unit_interval(graded, share, trials):
    (row,) = ask(graded, f"SELECT wilson_low({share}, {trials}) AS low, wilson_high({share}, {trials}) AS high")
    assert [row["low"], row["high"]] == pytest.approx(wilson(share, trials), abs=1e-12)
    assert 0 <= row["low"] <= share <= row["high"] <= 1


def test_no_trials_have_no_interval(graded):
    assert ask(graded, "SELECT wilson_low(.5, 0) AS low, wilson_high(.5, 0) AS high") == [{"low": None, "high": None}]
