"""Is the final answer of a response the reference answer?

    correct, answer, reason = is_correct("... so she has #### 1,234", "1234")

The answer is read from the last `#### N`, else the last `\\boxed{...}`, else the last `Answer: ...` (or `answer is`),
else it is the last number of the text, if the reference is a number. Numbers are compared exactly, as fractions:
1,234 = 1234.0, 0.5 = 1/2, $5 = 5 dollars = 5; but 5 cm is not 5 m. Everything else is compared as text, after trivial
LaTeX is taken off; what is equal in value but not in form (3x+1 and 1+3x) counts as wrong: checker.py asks math-verify
about that. Nothing is evaluated; time is linear in the length of the response.
"""

import re
from fractions import Fraction

from pipeline.evaluate.units import differ, split_unit

LONGEST_ANSWER = 500
"""Characters of a marked answer that are looked at."""
LONGEST_NUMBER = 100
"""Characters of a number; longer ones are compared as text."""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(rf"(?P<sign>[-+]?)(?:\$ ?)?(?P<inner>-?)(?P<top>{_DIGITS})"
                     r"(?: ?/ ?(?P<bottom>[0-9]+(?:\.[0-9]+)?))?")
_IN_TEXT = re.compile(
    r"[-+]?\\[dt]?frac ?\{ ?-?[0-9]+ ?\} ?\{ ?[0-9]+ ?\}|(?<![0-9A-Za-z_.,])[-+]?(?:\\?\$)?-?"
    r"(?:[0-9]{1,3}(?:,(?:\\! ?)?[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:/[0-9]+(?:\.[0-9]+)?)?")
_GOES_ON = re.compile(r" ?(?:\}|\^(?! ?\{? ?\\circ)|\\(?:sqrt|[dt]?frac|pi|cdot|times))")
_FRACTION = re.compile(r"([-+]?) ?\\frac ?\{ ?(-?[0-9]+) ?\} ?\{ ?([0-9]+) ?\}")
_ASSIGNED = re.compile(r"[A-Za-z] ?= ?")
_UNIT = re.compile(r" ?(?:%|°|\^ ?\{? ?\\circ ?\}?|[€£¥])?(?:(?P<words>(?: [A-Za-z][A-Za-z./-]*){1,4}))?")
_MARKED = re.compile(r"\banswer\b[*_ ]*(?::|\bis\b:?)[*_ ]*(?P<answer>[^\n]*)", re.IGNORECASE)
_SCALES = set("""hundred thousand million billion trillion dozen hundreds thousands millions billions trillions dozens
half halves thirds fourths fifths sixths sevenths eighths ninths tenths hundredths thousandths millionths pi or and to
i x y n times plus minus over sqrt squared cubed k bn""".split())
"""Words after a number that make another number of it, so no units."""
_LETTERS = {"m", "g", "s", "h", "l", "L"}
"""Single letters that are units: `5 r` is a product."""


def is_correct(response: str, ground_truth: str) -> tuple[bool, str | None, str]:
    """(correct, the answer that was read or None, why)."""
    reference = _plain(ground_truth)
    expected = number_of(reference)
    answer = marked_answer(response)
    if answer is None and expected is not None:
        answer = last_number(response)
    if answer is None:
        return False, None, "no answer found"
    found = number_of(answer)
    if expected is None or found is None:
        same = _plain(answer).replace(" ", "") == reference.replace(" ", "") != ""
        return same, answer, "same text" if same else "other text"
    if found == expected and differ(split_unit(_plain(answer))[1], split_unit(reference)[1]):
        return False, answer, "other unit"
    return found == expected, answer, "same number" if found == expected else "other number"


def marked_answer(response: str) -> str | None:
    """What the response marks as its answer; None if it marks nothing."""
    for found in (_after_hashes(response), _boxed(response), _after_answer(response)):
        if found:
            return found
    return None


def last_number(response: str) -> str | None:
    """The last number of the response, as it is written there; None also where it is a part of an expression."""
    last, response = None, response.replace("−", "-")
    for last in _IN_TEXT.finditer(response):
        pass
    if last is None or response[:last.start()].endswith(("{", "^")) or _GOES_ON.match(response, last.end()):
        return None
    return last.group().lstrip("+")


def number_of(text: str) -> Fraction | None:
    """The number that `text` is, with a currency sign before or units behind it; None if it is anything more."""
    text = _plain(text)
    assigned = _ASSIGNED.match(text)
    text = text[assigned.end():] if assigned else text
    fraction = _FRACTION.match(text)
    text = f"{fraction[1]}{fraction[2]}/{fraction[3]}{text[fraction.end():]}" if fraction else text
    match = _NUMBER.match(text)
    if match is None or match.end() > LONGEST_NUMBER or not _is_unit(text[match.end():]):
        return None
    top, bottom = Fraction(match["top"].replace(",", "")), Fraction(match["bottom"] or 1)
    negative = (match["sign"] == "-") != (match["inner"] == "-")
    return None if bottom == 0 else (-top if negative else top) / bottom


def _is_unit(text: str) -> bool:
    match = _UNIT.fullmatch(text)
    words = (match["words"] or "").split() if match else []
    factor = len(words) == 1 and len(words[0]) == 1 and words[0] not in _LETTERS
    return match is not None and not factor and not any(word.lower() in _SCALES for word in words)


def _plain(text: str) -> str:
    """Without the marks around an answer: math signs, bold, \\text, \\left, thin spaces, a full stop."""
    text = text[:LONGEST_ANSWER].replace("−", "-").replace("{,}", ",").replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"\\(?:text|mathrm|mbox|textbf) ?\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\\[!,;: ]|\\(?:left|right)(?![A-Za-z])|\\[()\[\]]", "", text).replace("\\dfrac", "\\frac")
    text = " ".join(text.replace("\\tfrac", "\\frac").split()).strip("*_`~ ").rstrip(".,;: ")
    while len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    return text.removesuffix("$") if text.count("$") == 1 and text.endswith("$") else text


def _after_hashes(response: str) -> str | None:
    _, found, answer = response.rpartition("####")
    return answer.lstrip(" ").partition("\n")[0].strip()[:LONGEST_ANSWER] if found else None


def _after_answer(response: str) -> str | None:
    last = None
    for last in _MARKED.finditer(response):
        pass
    # "The answer is 5!" holds no factorial, a boxed 5! does
    return _first_sentence(last["answer"].strip()[:LONGEST_ANSWER]).rstrip("! ") if last else None


def _first_sentence(text: str) -> str:
    """Up to a full stop that is followed by a space: `42. I am sure` is 42."""
    return re.split(r"(?<=[^A-Z])\. ", text, maxsplit=1)[0]


def _boxed(response: str) -> str | None:
    """The last boxed group whose braces close; a few are tried."""
    end = len(response)
    for _ in range(4):
        start = response.rfind("\\boxed", 0, end)
        if start < 0:
            return None
        found = _group(response[start + len("\\boxed"):start + len("\\boxed") + LONGEST_ANSWER].lstrip())
        if found is not None:
            return found.strip()
        end = start
    return None


def _group(text: str) -> str | None:
    """The inside of the braces that `text` begins with, None if they do not close."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[1:place] if place else None
    return None
