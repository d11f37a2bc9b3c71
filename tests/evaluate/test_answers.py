"""Reading answers out of responses, and comparing them."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluate.answers import is_correct, last_number, marked_answer, number_of

RIGHT = [
    ("16 - 3 = 13\n#### 13", "13"), ("#### 1,234", "1234"), ("#### $5.00", "5"), ("#### -$5", "-5"),
    ("#### $-5", "-5"), ("#### 12 apples per day", "12"), ("#### 18\nand more 3", "18"), ("#### 7.", "7"),
    ("so \\boxed{\\frac{1}{2}}", "0.5"), ("\\boxed{-\\frac{3}{4}}", "-3/4"), ("\\boxed{10\\%}", "10"),
    ("\\boxed{90^\\circ}", "90"), ("\\boxed{3 \\text{ cm}}", "3"), ("\\boxed{x = 7}", "7"),
    ("\\boxed{1{,}000}", "1000"), ("\\boxed{\\boxed{3}", "3"),
    ("\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}", "\\left( 3, \\frac{\\pi}{2} \\right)"),
    ("\\boxed{\\text{Evelyn}}", "Evelyn"), ("\\boxed{\\dfrac{2}{4}}", "\\frac{1}{2}"),
    ("Answer: 42", "42"), ("**Answer:** 42 dollars", "42"), ("The answer is 42. I checked it 3 times.", "42"),
    ("Answer: $12$", "12"), ("Answer: 3\nAnswer: 4", "4"), ("it's 5-3", "3"), ("we get -3", "-3"), ("so 3/4", "0.75"),
    ("He has 1,234,567 coins.", "1234567"), ("142", "142.0"), ("That is −3", "-3"), ("7 <= 9", "9"),
    ("so it is \\frac{24}{25}.", "0.96"), ("there are 10,\\!080 of them", "10080"), ("an angle of 90^\\circ", "90"),
    ("The answer is 5!", "5"), ("#### 5 m", "5"), ("#### 5 dollars", "$5"), ("#### 2 a day", "2"),
]
WRONG = [
    ("#### 13", "14"), ("", "5"), ("no number", "5"), ("#### 1,2", "12"), ("#### 12 + 3", "12"), ("#### 5x", "5"),
    ("#### 3 pi", "3"), ("Answer: 5 million", "5"), ("Answer: 1 or 2", "1"), ("\\boxed{5\\sqrt{2}}", "5"),
    ("\\boxed{3\\frac{1}{2}}", "3"), ("#### 1/0", "1"), ("####", "3"), ("#### ٣", "3"), ("#### 13\n", ""),
    ("\\boxed{A}", "B"), ("3", "A"), ("#### 5 k", "5"), ("\\boxed{(1,2)}", "12"), ("#### 0.33", "1/3"),
    ("#### 5 cm", "5 m"), ("\\boxed{5 \\text{ cents}}", "$5"), ("#### 5 r", "5"), ("#### 5 tenths", "5"),
    ("\\boxed{5!}", "5"), ("that makes 5\\sqrt{2}", "2"), ("it grows as x^2", "2"), ("x = \\frac{24}{25}", "25"),
]


@pytest.mark.parametrize("response, reference", RIGHT)
def test_a_right_answer_is_seen_in_every_common_form(response, reference):
    correct, answer, reason = is_correct(response, reference)
    assert correct and answer and reason in ("same number", "same text")


@pytest.mark.parametrize("response, reference", WRONG)
def test_what_is_not_the_reference_is_wrong(response, reference):
    correct, _, reason = is_correct(response, reference)
    assert not correct and reason in ("no answer found", "other number", "other text", "other unit")


def test_a_marked_answer_goes_before_a_later_number():
    assert is_correct("#### 4\nI used 17 steps", "4")[0]
    assert is_correct("\\boxed{4}, after 17 steps", "4")[0]
    assert is_correct("#### 4 and \\boxed{5}", "5") == (False, "4 and \\boxed{5}", "other text")


def test_without_a_number_as_reference_an_unmarked_number_is_no_answer():
    assert is_correct("so it is 5", "A") == (False, None, "no answer found")


@given(st.integers(-10 ** 15, 10 ** 15), st.sampled_from(["{}", "{:,}", "{}.0", "{}.", "{} dollars", "+{}", "${}"]))
def test_an_integer_is_read_back_from_every_way_of_writing_it(number, form):
    if form[0] == "+" and number < 0:
        form = "{}"
    text = form.format(number)
    assert number_of(text) == number
    assert is_correct(f"I think #### {text}", str(number))[0]
    assert not is_correct(f"I think #### {text}", str(number + 1))[0]


@given(st.decimals(-10 ** 6, 10 ** 6, places=3))
def test_decimals_are_compared_exactly(number):
    assert number_of(f"{number:,}") == Fraction(number)


@given(st.text(max_size=200), st.text(max_size=20))
def test_no_text_breaks_the_checker(response, reference):
    correct, answer, reason = is_correct(response, reference)
    assert isinstance(correct, bool) and (answer is None or isinstance(answer, str)) and reason


@pytest.mark.parametrize("text", [
    "\\boxed{", "1,", "1", "answer ", "answer:", "$", "#### ", "-", "1/", "\\text{", "*_ ", "1 ", "1,234", ".", "{}"])
def test_a_long_hostile_response_takes_no_time(text):
    response = text * (100_000 // len(text))
    start = time.process_time()
    is_correct(response, "1")
    is_correct("#### 1", response)
    is_correct("#### " + response, response)
    assert time.process_time() - start < 1


def test_a_number_of_any_length_is_compared_and_never_parsed():
    digits = "9" * 5000
    assert number_of(digits) is None
    assert not is_correct(f"#### {digits}", "9")[0]


def test_the_parts_can_be_asked_alone():
    assert marked_answer("a \\boxed{b{c}d} e") == "b{c}d"
    assert marked_answer("nothing") is None
    assert last_number("5-3 and 1,000.5 left.") == "1,000.5"
    assert last_number("none") is None
