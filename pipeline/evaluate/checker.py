r"""Is an answer right? Exactly first, then by value.

    with Checker(timeout_s=5.0) as checker:
        checker.check(r"... so \boxed{1+3x}", "3x+1")    # Verdict(True, "1+3x", "math-verify: equal")

1. answers.py reads the answer out of the response and compares numbers exactly and everything else as text. What it
   finds right is right; two plain numbers that differ are wrong.
2. latex.py brings reference and answer into one form, or says why it cannot. Same form or same choice letter: right.
3. What is left goes to math-verify, in a child process that is killed at the timeout: same_value.py says what counts
   as equal, reader.py why no text of a model is ever evaluated as code.

A verdict depends on the two texts alone, but for `no verdict within 5 s`. Rather wrong than falsely right: what cannot
be read, and what people read in two ways, is wrong.
"""

import re
from dataclasses import dataclass
from importlib.util import find_spec

from pipeline.evaluate.answers import LONGEST_ANSWER, is_correct, number_of
from pipeline.evaluate.grading_process import GradingProcess, not_installed
from pipeline.evaluate.latex import Form, Unreadable, one_form
from pipeline.evaluate.units import differ

_CHOICE = re.compile(r"\$?(?:\\(?:text|mathrm|mbox|textbf|mathbf) ?\{)? ?\(?([A-J])\)? ?\}?\$?\.?")
_WORDS = re.compile(r"(?:\\(?:text|mathrm|mbox|textbf|mathbf) ?\{)? ?([A-Za-z]{2,}(?: [A-Za-z]+)*) ?\}?\.?")


@dataclass(frozen=True)
class Verdict:
    """`answer` is what was read out of the response, None if nothing was; `reason` is one of a few phrases."""

    correct: bool
    answer: str | None
    reason: str


class Checker:
    """Checks answers; starts one child process when the first answer needs it. For one thread."""

    def __init__(self, timeout_s: float = 5.0):
        """Raises UserError if math-verify is not installed."""
        if find_spec("math_verify") is None:
            raise not_installed("it is not installed")
        self._process = GradingProcess(timeout_s)

    def __enter__(self) -> "Checker":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the child process."""
        self._process.close()

    @property
    def versions(self) -> dict[str, str]:
        """Of the packages that compare, once the child has been asked."""
        return self._process.versions

    def check(self, response_text: str, ground_truth: str) -> Verdict:
        """Grade one response."""
        correct, answer, reason = is_correct(response_text, ground_truth)
        if correct or answer is None or reason == "other unit":
            return Verdict(correct, answer, reason)
        same, reason = self._by_value(answer[:LONGEST_ANSWER], ground_truth, reason)
        return Verdict(same, answer, reason)

    def _by_value(self, answer: str, reference: str, reason: str) -> tuple[bool, str]:
        for kind, form in (("same choice", _CHOICE), ("same words", _WORDS)):
            texts = [form.fullmatch(text.strip()) for text in (reference, answer)]
            if all(texts):
                same = _folded(texts[0][1]) == _folded(texts[1][1])
                return same, kind if same else reason
        try:
            expected = one_form(reference)
        except Unreadable as error:
            return False, f"{reason}; reference not compared by value: {error}"
        try:
            found = one_form(answer)
        except Unreadable as error:
            return False, f"{reason}; answer not compared by value: {error}"
        settled = _settled(expected, found)
        return settled or self._asked(expected, found)

    def _asked(self, expected: Form, found: Form) -> tuple[bool, str]:
        said = self._process.ask(expected.text, found.text)
        if said == "timeout":
            return False, f"no verdict within {self._process.timeout_s:g} s"
        if said == "died":
            return False, "no verdict: the grading process died"
        return said == "equal", f"math-verify: {said}"


def _folded(text: str) -> str:
    """Words without their capitals; ab and AB are products."""
    return text.casefold() if len(text) > 3 or text.casefold() in ("yes", "no", "odd") else text


def _settled(expected: Form, found: Form) -> tuple[bool, str] | None:
    """What needs no algebra: units, the same form, two numbers."""
    if differ(expected.unit, found.unit):
        return False, "other unit"
    if expected.text == found.text:
        return True, "same form"
    one, other = number_of(expected.text), number_of(found.text)
    if one is None or other is None:
        return None
    units = [form.unit == ("percent", 1) for form in (expected, found)]
    same = one == other
    if units[0] != units[1]:  # 50% is 50, and also 0.5
        same = same or (one / 100 == other if units[0] else one == other / 100)
    return same, "same number" if same else "other number"
