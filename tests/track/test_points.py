"""What trackers are handed: numbers of the tables, by hand, and no text."""

import json

import pytest

from pipeline.track.points import RoundPoints
from storage.rounds import Round
from tests.track.conftest import SECRET_TEXT


@pytest.fixture(scope="module")
def points(store):
    return RoundPoints(store, "made", 2)


def test_every_number_of_the_steps_table_is_at_its_step(store, points):
    for number in range(3):
        found = dict(points(number))
        for row in Round(store, "made", number).read("train").to_pylist():
            step = row.pop("step")
            shown = {name: value for name, value in found[step].items() if name.startswith("train/")}
            assert shown == {f"train/{name}": value for name, value in row.items() if value is not None}
            assert ("train/drift" in shown) == (step % 2 == 0)


def test_a_rounds_values_are_at_its_last_step(points):
    found = dict(points(1))
    assert sorted(found) == [3, 4] and not any(name.startswith("round/") for name in found[3])
    last = found[4]
    assert last["round/tokens"] == 4 and last["round/steps"] == 2 and last["round/teacher_mass"] == pytest.approx(.9375)
    assert last["round/loss"] == pytest.approx((1 / 3 + 1 / 4) / 2) and last["round/round"] == 1
    assert last["round/avg_at_k"] == 0.75 and last["round/gap_recovery"] == 0.75
    assert last["accuracy/sums/student/avg_at_k"] == 0.75 and last["accuracy/sums/student/pass_at_k"] == 1


def test_the_students_curve_begins_at_step_0_with_the_one_that_began_the_run(points):
    found = dict(points(0))
    assert sorted(found) == [0, 1, 2] and found[0]["accuracy/sums/student/avg_at_k"] == 0
    assert found[2]["accuracy/sums/student/avg_at_k"] == 0.5 and found[2]["accuracy/sums/teacher/avg_at_k"] == 1
    assert not any("/start/" in name for values in found.values() for name in values)


def test_the_rounds_own_number_comes_last(points):
    for number in range(3):
        _, values = points(number)[-1]
        assert list(values)[-1] == "round/round" and values["round/round"] == number


def test_no_text_and_nothing_but_numbers_is_handed_over(points):
    everything = [points(number) for number in range(3)]
    assert all(type(value) is float for each in everything for _, values in each for value in values.values())
    assert SECRET_TEXT not in json.dumps(everything)


def test_a_round_has_the_same_points_in_whatever_order_rounds_are_asked_for(store, points):
    backwards = RoundPoints(store, "made", 2)
    for number in (2, 0, 1):
        assert backwards(number) == RoundPoints(store, "made", number)(number) == points(number)
