"""Continuations and their depth curve: answers computed by hand."""

import made_rounds as made
import pytest
from test_accuracy import wilson

from storage import catalog, sqlfiles
from storage.objects import open_store
from storage.snapshot import take_snapshot

ENDED = {1: True, 2: False, 3: False}
"""How the student ended its rollouts by itself."""
STUDENT = {(1, 0): [True, False], (2, 0): [False, False], (3, 0): [True, True], (1, 32): [False], (2, 32): [False]}
TEACHER = {(1, 0): [True, True], (2, 0): [True, False], (3, 0): [True, True], (1, 32): [False], (2, 32): [True]}


@pytest.fixture(scope="module")
def connection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("continued")
    store = open_store(folder / "store", create=True)
    made.start_run(store, folder)
    responses = {each: [5] * 40 for each in ENDED}
    parts = [(made.rollouts(responses), made.tokens(responses))]
    made.commit_round(store, folder, "made", 0, parts, continuations=[
        made.continued("student", STUDENT, ENDED), made.continued("teacher", TEACHER, ENDED),
        made.continued("teacher", {(9, 64): [True]}, {9: True}, task=["words"])])
    return catalog.connect(store, take_snapshot(store))


def curve(connection):
    return catalog.query(connection, sqlfiles.load("reports", "accuracy_by_depth").text).to_pylist()


def test_continuations_are_rows(connection):
    rows = catalog.query(connection, "FROM continuations WHERE depth = 32 ORDER BY role, rollout_id").to_pylist()
    assert [(row["role"], row["rollout_id"], row["correct"], row["prefix_correct"]) for row in rows] == [
        ("student", 1, False, True), ("student", 2, False, False), ("teacher", 1, False, True),
        ("teacher", 2, True, False)]


def test_the_depth_curve_is_of_both_roles(connection):
    """Depth 0: three of the student's six are right and five of the teacher's; depth 32: none and one of two."""
    first, second, third = curve(connection)
    shown = ("task", "depth", "rollouts", "continuations", "student_accuracy", "teacher_accuracy",
             "continuation_advantage")
    assert [tuple(row[name] for name in shown) for row in (first, second, third)] == [
        ("math", 0, 3, 12, 3 / 6, pytest.approx(5 / 6), pytest.approx(1 / 3)), ("math", 32, 2, 4, 0.0, 0.5, 0.5),
        ("words", 64, 1, 1, None, 1.0, None)]


def test_verdicts_that_turn_are_shares_of_the_rollouts_that_ended_so(connection):
    """Depth 0, rollout 1 ended right: the student turns one of two wrong, the teacher none. Of rollouts 2 and 3, which
    ended wrong, the student rights two of four and the teacher three."""
    first, second, third = curve(connection)
    shown = ("right_rollouts", "student_right_to_wrong", "teacher_right_to_wrong", "wrong_rollouts",
             "student_wrong_to_right", "teacher_wrong_to_right")
    assert [tuple(row[name] for name in shown) for row in (first, second, third)] == [
        (1, 0.5, 0.0, 2, 0.5, 0.75), (1, 1.0, 1.0, 1, 0.0, 1.0), (1, None, 0.0, 0, None, None)]
    counts = ("student_turned_wrong", "teacher_turned_wrong", "student_turned_right", "teacher_turned_right")
    assert [tuple(row[name] for name in counts) for row in (first, second, third)] == [
        (1, 0, 2, 3), (1, 1, 0, 1), (0, 0, 0, 0)]


def test_intervals_of_the_curve_count_rollouts(connection):
    first, _, third = curve(connection)
    assert [first["student_accuracy_low"], first["student_accuracy_high"]] == pytest.approx(wilson(3 / 6, 3))
    assert [first["teacher_accuracy_low"], first["teacher_accuracy_high"]] == pytest.approx(wilson(5 / 6, 3))
    assert third["student_accuracy_low"] is None is third["student_accuracy_high"]
