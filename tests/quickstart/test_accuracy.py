"""Accuracy: repeatable, right where the model is, with an interval that stays honest at 0 and 1."""

import pytest

from pipeline.config.model import Rollout
from pipeline.evaluate.accuracy import Accuracy, accuracy, gap_recovery, wilson
from pipeline.prompts.generated import Problem, problems
from pipeline.quickstart.tokenizer import train_tokenizer
from tests.tiny import save_model

SHORT = Rollout(max_new_tokens=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), train_tokenizer(), seed=1)


def test_every_problem_is_answered_as_often_as_asked_and_again_the_same(model):
    asked, seen = problems("arithmetic", 1, 3, "held_out"), []
    found = accuracy(model, asked, rollout=SHORT, samples=2, progress=lambda *call: seen.append(call))
    assert (found.total, found.problems) == (6, 3) and 0 <= found.correct <= 6 and found.truncated <= 6
    assert seen[-1] == ("answers", 6, 6)
    assert accuracy(model, asked, rollout=SHORT, samples=2) == found


def test_a_problem_counts_as_right_when_its_answer_is_what_the_model_writes(model):
    from pipeline.evaluate.accuracy import _write
    from pipeline.evaluate.answers import last_number

    asked = [Problem(f"What is {n} + {n}?", "", "0") for n in range(40)]
    texts, _ = _write(model, asked, None, Rollout(max_new_tokens=24), 1, 0, None)
    numbers = [last_number(text) for text in texts]
    assert any(numbers)
    told = [Problem(each.question, "", number or "0") for each, number in zip(asked, numbers)]
    found = accuracy(model, told, rollout=Rollout(max_new_tokens=24), samples=1)
    assert found.correct >= sum(number is not None for number in numbers)


def test_intervals_hold_the_share_and_stay_inside_0_and_1():
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0.0, 200)[0] == 0 and wilson(0.0, 200)[1] == pytest.approx(0.0188, abs=1e-4)
    assert wilson(1.0, 200)[1] == pytest.approx(1) and wilson(1.0, 200)[1] <= 1
    found = Accuracy(correct=300, total=400, problems=100, truncated=0)
    assert found.mean == 0.75 and found.interval == wilson(0.75, 100)
    assert found.as_dict()["interval"] == list(wilson(0.75, 100))


def test_gap_recovery_is_the_share_of_the_way_to_the_teacher():
    assert gap_recovery(0.3, 0.6, 0.9) == pytest.approx(0.5)
    assert gap_recovery(0.3, 0.2, 0.8) == pytest.approx(-0.2)
    assert gap_recovery(0.4, 0.4, 0.4) is None
