"""Answers compared by value: what is equal, what is not, and that nothing a model writes is executed or stops us."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.answer_pairs import EQUAL, UNEQUAL
from benchmarks.answer_values import altered, rewritten
from pipeline.config.model import HubSource
from pipeline.evaluate.answers import number_of
from pipeline.evaluate.checker import Checker, Verdict
from pipeline.prompts.sources import read_source
from storage.errors import UserError

ROOT = Path(__file__).parents[2]
SLOW, STUCK = ((f"\\boxed{{(x+1)^{{{n}}}(x+2)^{{{n}}}}}", f"(x+1)^{{{n - 1}}}(x^2+3x+2)(x+2)^{{{n - 1}}}")
               for n in (499, 9999))
"""Equalities that math-verify finds after half a second, and after more than ten."""
public_data = pytest.mark.skipif(not os.environ.get("OPD_DATA_DIR"),
                                 reason="OPD_DATA_DIR is not set: it names a folder with the public data sets")


@pytest.fixture(scope="module")
def checker():
    with Checker(timeout_s=5.0) as checker:
        yield checker


def boxed(answer: str) -> str:
    return f"Therefore it is \\boxed{{{answer}}}."


# --- what is equal -----------------------------------------------------------------------------------------------


def test_equal_answers_in_another_form_are_right(checker):
    wrong = [(pair, checker.check(boxed(pair[1]), pair[0])) for pair in EQUAL]
    assert [each for each in wrong if not each[1].correct] == []


def test_different_answers_in_a_like_form_are_wrong(checker):
    right = [(pair, checker.check(boxed(pair[1]), pair[0])) for pair in UNEQUAL]
    assert [each for each in right if each[1].correct] == []


@pytest.mark.parametrize("answer, reference, correct, reason", [
    ("7", "7", True, "same number"), ("7", "8", False, "other number"), ("5 cm", "5 m", False, "other unit"),
    (r"\text{C}", "(C)", True, "same choice"), ("EAST", r"\text{east}", True, "same words"),
    ("52_8", "52_{8}", True, "same form"), ("1+3x", "3x+1", True, "math-verify: equal"),
    ("1+2x", "3x+1", False, "math-verify: unequal"),
    ("3x+", "3x+1", False, "math-verify: the answer cannot be read"),
    ("3x+1", "the whole line", False, "other text; reference not compared by value: words"),
    ("3 apples and more", "3x", False, "other text; answer not compared by value: words"),
    (r"\frac123", "3x", False, "other text; answer not compared by value: an argument without braces"),
    ("1" * 300, "3x", False, "other text; answer not compared by value: too long"),
])
def test_the_reason_says_who_decided_and_why(checker, answer, reference, correct, reason):
    assert checker.check(boxed(answer), reference) == Verdict(correct, answer, reason)


def test_without_an_answer_there_is_a_verdict_too(checker):
    assert checker.check("I do not know", "3x+1") == Verdict(False, None, "no answer found")
    assert checker.check("", "") == Verdict(False, None, "no answer found")


def test_the_exact_checker_settles_numbers_and_text_without_a_child():
    with Checker() as checker:
        assert checker.check("#### 1,234", "1234").correct and not checker.check("#### 12", "13").correct
        assert checker.check(boxed(r"\frac12"), "0.5").correct and checker.versions == {}


def test_the_same_texts_get_the_same_verdicts_from_another_checker_in_another_order(checker):
    pairs = EQUAL[50:62] + UNEQUAL[50:62]
    first = [checker.check(boxed(answer), reference) for reference, answer in pairs]
    with Checker() as other:
        second = [other.check(boxed(answer), reference) for reference, answer in reversed(pairs)]
    assert first == second[::-1]


# --- reference answers -------------------------------------------------------------------------------------------


def references(name: str, subset: str | None, split: str, question: str) -> list[str]:
    source = HubSource(name=name, subset=subset, split=split, question=question, answer="answer")
    return [row.answer for row in read_source(source).rows]


@public_data
@pytest.mark.parametrize("source, step", [
    (("openai/gsm8k", "main", "test", "question"), 1), (("openai/gsm8k", "main", "train", "question"), 5),
    (("HuggingFaceH4/MATH-500", None, "test", "problem"), 1),
    (("HuggingFaceH4/aime_2024", None, "train", "problem"), 1),
    (("AI-MO/aimo-validation-amc", None, "train", "problem"), 1)])
def test_every_reference_is_right_as_an_answer_to_itself(checker, source, step):
    for reference in references(*source)[::step]:
        assert checker.check(boxed(reference), reference).correct, reference
        if number_of(reference) is not None:
            assert checker.check(f"3 + 4 = 7\n#### {reference}", reference).correct, reference
            assert checker.check(f"First 3, then 4. There are {reference} left.", reference).correct, reference


@public_data
def test_altered_references_are_wrong_and_rewritten_ones_right(checker):
    import random

    chance = random.Random(7)
    answers = sorted(set(references("HuggingFaceH4/MATH-500", None, "test", "problem")))
    for reference in answers[::3]:
        _, text = altered(reference, chance)
        assert not checker.check(boxed(text), reference).correct, (reference, text)
    for reference in answers[::6]:
        for _, text in rewritten(reference):
            assert checker.check(boxed(text), reference).correct, (reference, text)


# --- hostile answers ---------------------------------------------------------------------------------------------

CODE = ["__import__('os').system('touch {}')", "().__class__.__bases__[0].__subclasses__()", "open('{}','w')",
        "exec(\"open('{}','w')\")", r"\operatorname{{__import__('os').system('touch {}')}}",
        r"\text{{__import__('os').system('touch {}')}}", "1 if __import__('os').system('touch {}') else 2",
        "f'{{__import__(\"os\").system(\"touch {}\")}}'", "Symbol('x').__class__", "1,234 and open('{}','w')",
        r"\variable{{x}}", r"\input{{{}}}", r"\write18{{touch {}}}", "lambda: 0", "S('open(\"{}\",\"w\")')"]
HEAVY = ["9^{9^{9^{9^9}}}", "9^9^9^9", "9**9**9**9", "((9!)!)!", "9!!!!", "1000000!", r"\binom{10^9}{10^8}",
         "1" + "0" * 1_000_000, "9" * 60, "{" * 100 + "1" + "}" * 100, "(" * 5000, r"\frac{1}{" * 60 + "1" + "}" * 60,
         r"\sqrt{" * 100, "x^" * 100 + "2", r"\sum_{n=1}^{10^{100}} n", r"\int_0^1 e^{x^2} dx", "x" * 100_000,
         r"\left(" * 10_000, "+".join("x^{%d}" % n for n in range(30)), "-" * 189 + "1", "1+" * 99 + "1",
         r"(1, 9^{99999})", "((((((9^{99})^{99})^{99})^{99})^{99})^{99})", r"\begin{pmatrix}" + "1&" * 90 + "1",
         r"\sqrt[9^{9^9}]{2}", "0^{-1}", r"\frac{0}{0}", r"\log_1 2", r"\infty-\infty", "10^{-100000}", "1/0"]
STRANGE = ["\x00", "1\x002", "‮3x+1", "\x1b[2J3x+1", "３x＋１", "٣", "\ud800", "a\u0301", "\\", "{", "}", "$", "\n",
           "\\boxed", "\\boxed{", "####", "\u2028", "nan", "inf", "\\infty", "None", "True", "oo", "E", "I", "zoo"]


@pytest.mark.parametrize("form", ["\\boxed{{{}}}", "#### {}", "The answer is {}"])
def test_code_in_an_answer_is_never_executed(checker, tmp_path, form):
    planted = tmp_path / "planted"
    for code in CODE:
        verdict = checker.check(form.format(code.format(planted)), "3x+1")
        assert not verdict.correct and not planted.exists(), code
        assert not checker.check(boxed("3x+1"), code.format(planted)).correct and not planted.exists(), code
    assert checker.check(boxed("1+3x"), "3x+1").correct


def test_heavy_and_strange_answers_get_a_verdict_in_time_and_the_next_one_too(checker):
    for answer in [*HEAVY, *STRANGE]:
        for response, reference in ((boxed(answer), "3x+1"), (f"#### {answer}", "1"), (boxed("3x+1"), answer)):
            start = time.monotonic()
            verdict = checker.check(response, reference)
            assert time.monotonic() - start < 6, answer[:60]
            assert not verdict.correct and verdict.reason.isprintable() and len(verdict.reason) < 100, answer[:60]
    assert checker.check(boxed("1+3x"), "3x+1") == Verdict(True, "1+3x", "math-verify: equal")


PIECES = st.sampled_from([
    *"0123456789xyabeid+-*/^_=<>(){}[],.|!& ", "\\frac", "\\sqrt", "\\pi", "\\infty", "\\pm", "\\cup", "\\{", "\\}",
    "\\left(", "\\right)", "\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "\\sin ", "\\in", "\\text{cm}", "\\%",
    "^\\circ", "\\log", "\\le", "\\binom", "10", "{2}", "\\emptyset"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture],
          derandomize=True, database=None)
@given(st.lists(PIECES, max_size=14).map("".join), st.lists(PIECES, min_size=1, max_size=8).map("".join))
def test_any_latex_gets_a_verdict_and_what_is_right_is_right_the_other_way_round(checker, answer, reference):
    verdict = checker.check(f"#### {answer}", reference)
    assert isinstance(verdict.correct, bool) and verdict.reason
    if verdict.correct and verdict.reason == "math-verify: equal":
        assert checker.check(f"#### {reference}", answer).correct


# --- the child ---------------------------------------------------------------------------------------------------


def test_a_comparison_is_killed_at_the_timeout_and_the_next_one_works():
    with Checker(timeout_s=0.5) as checker:
        checker.check(boxed("1+3x"), "3x+1")
        start = time.monotonic()
        assert checker.check(*STUCK) == Verdict(False, STUCK[0][7:-1], "no verdict within 0.5 s")
        assert time.monotonic() - start < 1.5
        assert checker.check(boxed("1+3x"), "3x+1").correct


def test_a_child_that_was_killed_between_or_during_answers_is_replaced():
    with Checker() as checker:
        checker.check(boxed("1+3x"), "3x+1")
        checker._process._child.kill()
        assert checker.check(boxed("2+3x"), "3x+2").correct
        threading.Timer(0.2, checker._process._child.kill).start()
        assert checker.check(*SLOW).reason == "math-verify: equal"


def test_closing_ends_the_child():
    with Checker() as checker:
        checker.check(boxed("1+3x"), "3x+1")
        child = checker._process._child
    assert child.poll() is not None and not Path(f"/proc/{child.pid}").exists()


@pytest.mark.parametrize("busy", [False, True])
def test_the_child_ends_when_its_parent_is_killed(busy):
    script = ("import time\nfrom pipeline.evaluate.checker import Checker\nchecker = Checker(1.0)\n"
              "checker.check('\\\\boxed{1+3x}', '3x+1')\nprint(checker._process._child.pid, flush=True)\n"
              + (f"checker.check(*{STUCK!r})\n" if busy else "time.sleep(60)\n"))
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = Path("/proc") / parent.stdout.readline().strip()
    assert child.exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.monotonic() < deadline


def test_without_math_verify_one_line_says_so():
    script = ("import sys\nsys.modules['math_verify'] = None\nfrom pipeline.evaluate.checker import Checker\n"
              "try:\n    Checker()\nexcept ValueError as error:\n    print(type(error).__name__, error)")
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.startswith("UserError answers are compared with math-verify 0.9") and said.count("\n") == 1


def test_a_math_verify_that_cannot_be_imported_is_said_too(tmp_path, monkeypatch):
    (tmp_path / "math_verify").mkdir()
    (tmp_path / "math_verify" / "__init__.py").write_text("raise ImportError('no grammar\\nhere')")
    monkeypatch.syspath_prepend(tmp_path)
    with Checker() as checker, pytest.raises(UserError, match=r"cannot be used here \(no grammar here\): pip install"):
        checker.check(boxed("1+3x"), "3x+1")


ATTEMPTS = ["open(file, 'w')", "open(file, 'ab')", "os.system('touch ' + file)", "subprocess.run(['touch', file])",
            "os.fork()", "os.mkdir(file)", "os.remove(file)", "socket.socket()", "ctypes.CDLL(None)",
            "sympy.sympify('1+1')", "sympy.Number('12')", "sympy.Symbol('x') == '__import__'"]


def test_the_fence_of_the_child_refuses_what_grading_has_no_use_for(tmp_path):
    script = f"""
import ctypes, os, socket, subprocess, sympy
from pipeline.evaluate import grading_child
grading_child._fence()
file = {str(tmp_path / "planted")!r}
for attempt in {ATTEMPTS}:
    try:
        print(attempt, "gave", eval(attempt))
    except PermissionError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    *refused, compared = run.stdout.splitlines()
    assert refused == ["no text becomes code here"] * (len(ATTEMPTS) - 1), run.stderr
    assert compared.endswith("gave False") and not (tmp_path / "planted").exists()


def test_reading_a_text_compiles_nothing():
    script = r"""
import sys
from pipeline.evaluate import reader
from benchmarks.answer_pairs import EQUAL
from pipeline.evaluate.latex import Unreadable, one_form
seen, texts = [], [text for pair in EQUAL[::2] for text in pair]
reader.read("\\frac{1}{2}", True)
sys.addaudithook(lambda event, arguments: seen.append(arguments) if event in ("compile", "exec") and "<" in str(
    arguments[1] if event == "compile" else arguments[0].co_filename) else None)
count = 0
for text in texts:
    try:
        count += reader.read(one_form(text).text, True) is not None
    except Exception:
        pass
assert count > 90 and not seen, (count, seen[:3])
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
