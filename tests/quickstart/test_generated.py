"""Generated problems: right, distinct, reproducible, and never in both splits."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluate.answers import is_correct
from pipeline.prompts.generated import problems, scratch_pad
from storage.errors import UserError


def numbers(problem):
    """(operator, smaller, larger) of a problem, from the first line of its scratch pad."""
    a, operator, b = re.fullmatch(r"(\d+)([+-])(\d+)", problem.solution.splitlines()[0]).groups()
    return operator, *sorted([int(a), int(b)])


def test_every_answer_is_the_sum_or_difference_of_the_numbers_in_the_question():
    for problem in problems("arithmetic", 5, 500, "train"):
        operator, smaller, larger = numbers(problem)
        assert sorted(map(int, re.findall(r"\d+", problem.question))) == [smaller, larger]
        assert int(problem.answer) == (larger + smaller if operator == "+" else larger - smaller)
        assert problem.solution.splitlines()[-1] == f"#### {problem.answer}"
        assert is_correct(problem.solution, problem.answer)[0]


@given(st.integers(0, 9999), st.integers(0, 9999), st.sampled_from("+-"))
def test_each_line_of_a_scratch_pad_is_true_and_its_columns_give_the_result(a, b, operator):
    a, b = (a, b) if operator == "+" or a >= b else (b, a)
    columns = [line.split("=") for line in scratch_pad(operator, a, b).splitlines()[1:]]
    for left, right in columns:
        assert re.fullmatch(rf"\d\{operator}\d\{operator}[01](\+10)?", left)
        assert int(right) == sum(map(int, re.findall(r"[+-]?\d+", left)))
    result = sum(int(right[-1]) * 10 ** place for place, (_, right) in enumerate(columns))
    result += (len(columns[-1][1]) == 2) * 10 ** len(columns)
    assert result == (a + b if operator == "+" else a - b)


def test_the_splits_share_no_pair_of_numbers_whatever_their_seeds():
    train = {numbers(problem) for problem in problems("arithmetic", 0, 4000, "train")}
    held_out = {numbers(problem) for problem in problems("arithmetic", 1, 4000, "held_out")}
    assert not train & held_out


def test_questions_are_distinct_and_a_longer_list_begins_with_the_shorter():
    long = problems("arithmetic", 3, 2000, "held_out")
    assert len({problem.question for problem in long}) == 2000
    assert problems("arithmetic", 3, 100, "held_out") == long[:100]
    assert problems("arithmetic", 4, 100, "held_out") != long[:100]


def test_a_known_problem_never_changes():
    first = problems("arithmetic", 0, 1, "train")[0]
    assert first.question == "Jack had 865 eggs and sold 32 at the market. How many eggs does Jack still have?"
    assert first.solution == "865-032\n5-2-0=3\n6-3-0=3\n8-0-0=8\n#### 833"


def test_an_unknown_generator_split_or_count_is_a_users_error():
    for arguments in (("algebra", 0, 1, "train"), ("arithmetic", 0, 1, "test"), ("arithmetic", 0, 0, "train")):
        with pytest.raises(UserError):
            problems(*arguments)
