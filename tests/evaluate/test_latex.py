"""One form for written mathematics, units, and what is refused before anything compares it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluate.latex import LONGEST, Unreadable, one_form
from pipeline.evaluate.units import differ, split_unit


@pytest.mark.parametrize("text, form", [
    (r"$\dfrac12$", r"\frac{1}{2}"), (r"\frac 1 2", r"\frac{1}{2}"), (r"\frac1{19}", r"\frac{1}{19}"),
    (r"\frac{\sqrt3}3", r"\frac{\sqrt{3}}{3}"), (r"11\sqrt2", r"11\sqrt{2}"), ("√13", r"\sqrt{13}"),
    (r"\sqrt[3]{2}", r"\sqrt[3]{2}"), ("x^2y", "x^{2}y"), ("2^10", "2^{10}"), ("x^-1", "x^{-1}"),
    ("x^(n+1)", "x^{(n+1)}"), ("52_8", "52_{8}"), (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
    (r"11,\! 111,\! 111,\! 100", "11111111100"), ("1,234", "1234"), ("(1,234)", "(1,234)"), (r"1\,234.5", "1234.5"),
    ("x = 1 or x = 2", "x=1,x=2"), (r"5 \text{ and } 7", "5,7"), ("2 1/2", r"2\frac{1}{2}"), ("2π r", r"2\pi r"),
    (r"x \leq 3", r"x\le3"), ("x<=3", r"x\le3"), (r"\mathbb{R} \setminus \{2\}", r"\mathbb{R}\setminus\{2\}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"), (r"\boxed{3x}", "{3x}"),
    ("**3x + 1**.", "3x+1"), ("$$3x$$", "3x"), (r"\(3x\)", "3x"), (r"\text{C}", "C"),
    ("sin x + 1", r"\sin x+1"), ("2ab", "2a b"),
])
def test_ways_of_writing_come_to_one_form(text, form):
    assert one_form(text).text == form


@pytest.mark.parametrize("text, why", [
    ("", "nothing"), (" . ", "nothing"), ("a b", "words"), ("east", "words"), ("about 5", "words"), ("no", "words"),
    (r"\frac123", "an argument without braces"), (r"\sqrt13", "an argument without braces"),
    ("3 4", "two numbers side by side"), ("0.5.3", "two numbers side by side"), ("9^9^9", "a power of a power"),
    ("12:30", "a sign"), ("5;6", "a sign"), ("f'(x)", "a sign"), ("2@3", "a sign"), ("a\x00", "a sign"),
    ("1‮2", "a sign"), ("３", "a sign"), (r"\operatorname{eig}", "a command"), (r"\int_0^1 x", "a command"),
    (r"\sum_1^2 x", "a command"), (r"\input{x}", "a command"), (r"\approx 5", "a command"), (r"\text{cm}", "a command"),
    (r"\cos 20^\circ", "a command"), (r"\begin{array}{c}1\end{array}", "a command"), ("\\", "a sign"),
    ("9" * 60, "a number too long"), ("(" * 20 + "1" + ")" * 20, "nested too deep"), (r"\frac{1", "brackets that do"),
    ("x^", "an argument is missing"), ("1+" * LONGEST, "too long"), ("__import__('os')", "words"),
])
def test_what_is_not_read_says_why(text, why):
    with pytest.raises(Unreadable, match=why):
        one_form(text)


@given(st.text(alphabet="0123456789abxyπ+-*/^_=<>(){}[],.|!&\\$%°√ \n", max_size=60))
def test_any_text_has_a_form_or_a_reason_and_a_form_is_its_own_form(text):
    try:
        form = one_form(text)
    except Unreadable as error:
        assert str(error)
    else:
        assert form.text.isascii() and one_form(form.text).text == form.text


@pytest.mark.parametrize("text, value, unit", [
    (r"15\mbox{ cm}^2", "15", ("cm", 2)), (r"864 \mbox{ inches}^2", "864", ("in", 2)),
    ("90^\\circ", "90", ("degree", 1)),
    ("90 degrees", "90", ("degree", 1)), (r"\$18.90", "18.90", ("dollar", 1)), ("-$5", "-5", ("dollar", 1)),
    (r"50\%", "50", ("percent", 1)), ("3 square units", "3", ("unit", 2)), ("7 cubic centimeters.", "7", ("cm", 3)),
    (r"12\pi\text{ sq. ft}", r"12\pi", ("ft", 2)), ("5 m", "5", ("m", 1)), ("2x + 3 m", "2x + 3 m", None),
    ("12 apples", "12 apples", None), ("10 miles per hour", "10 miles per hour", None), ("x^2", "x^2", None),
    ("", "", None),
    (r"\cos 20^\circ", r"\cos 20^\circ", None), (r"5 \text{ million}", r"5 \text{ million}", None),
])
def test_units_of_the_table_are_split_off_and_nothing_else(text, value, unit):
    assert split_unit(text) == (value, unit)


def test_units_differ_only_where_both_are_known():
    cm, cm2, m = ("cm", 1), ("cm", 2), ("m", 1)
    assert differ(cm, m) and differ(cm, cm2) and not differ(cm, cm)
    assert not differ(None, cm) and not differ(cm, None) and not differ(None, None)
