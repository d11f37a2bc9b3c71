r"""Written mathematics in one form, for answers that are compared by their value.

    one_form(r"$\dfrac12\text{ cm}$")    # Form(text="\frac{1}{2}", unit=("cm", 1))

What it lets through is a small language: numbers, single letters, brackets, operators, and the commands of COMMANDS
and GREEK. Everything else raises `Unreadable`: words, any other command, characters outside ASCII (but for common
signs), what is too long or nested too deep, and what people read in two ways (`\frac123`, `3 4`, `12:30`). Equal forms
mean the same. Nothing is evaluated.
"""

import re
from dataclasses import dataclass

from pipeline.evaluate.units import Unit, split_unit

LONGEST = 200
"""Characters of an answer that is compared by value; the longest reference of MATH-500 has 59."""
LONGEST_NUMBER = 50
"""Digits of a number in it."""
DEEPEST = 12
"""Brackets inside brackets."""

GREEK = set("""alpha beta delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau
upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega""".split())
FUNCTIONS = set("""sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp""".split())
COMMANDS = FUNCTIONS | set("""frac sqrt binom infty cdot times div pm le ge neq in cup cap setminus emptyset lfloor
rfloor lceil rceil begin end""".split())

_SIGNS = {"−": "-", "–": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "÷": "\\div ", "π": "\\pi ",
          "∞": "\\infty ", "≤": "\\le ", "≥": "\\ge ", "≠": "\\neq ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
          "±": "\\pm ", "∅": "\\emptyset ", "²": "^{2}", "³": "^{3}", "θ": "\\theta ", "ℝ": "\\mathbb{R}"}
_NAMES = {"dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le",
          "leqslant": "le", "geq": "ge", "geqslant": "ge", "ne": "neq", "varnothing": "emptyset", "ast": "cdot"}
_BECOME = {"lt": "<", "gt": ">", "lvert": "|", "rvert": "|", "vert": "|", "lbrace": "\\{", "rbrace": "\\}",
           "lbrack": "[", "rbrack": "]"}
_DROPPED = set("""left right big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle quad qquad thinspace
boxed""".split())
_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_THOUSANDS = re.compile(r"(?<=[0-9])(?:,? ?\\! ?|\{,\}|\\[,;: ] ?)(?=[0-9]{3}(?![0-9]))")
_WITH_COMMAS = re.compile(r"([-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?)")
_AND = re.compile(r",? ?(?:\\(?:text|mbox|textrm|mathrm) ?\{ ?(?:and|or) ?\}|(?<![\\A-Za-z])(?:and|or)(?![A-Za-z]))")
_PLAIN_NAMES = {name: f"\\{name} " for name in FUNCTIONS | {"pi", "sqrt"}} | {"infinity": "\\infty ", "inf": "\\infty "}
_MIXED = re.compile(r"([-+]?[0-9]+) ([0-9]+)/([0-9]+)")
_ROOT = re.compile(r"√ ?([0-9]+|[a-z])")
_TEXT = re.compile(r"\\(?:text|mbox|textrm|mathrm|textbf|mathbf|textit|operatorname) ?\{ ?([A-Za-z]) ?\}")
_TOKEN = re.compile(r"\\(?:begin|end) ?\{[a-z]+\}|\\mathbb ?\{[A-Z]\}|\\[A-Za-z]+|\\.|[A-Za-z]+|[0-9]*\.?[0-9]+| +|.")
_CHARACTERS = set("+-*/^_=<>(){}[],|!&")
_MATRIX = {"matrix", "pmatrix", "bmatrix", "vmatrix"}


class Unreadable(ValueError):
    """Not mathematics of this language; the message says why, in a few words that are the same for like answers."""


@dataclass(frozen=True)
class Form:
    """An answer in one form, and the unit that stood with it."""

    text: str
    unit: Unit | None


def one_form(text: str) -> Form:
    """Raises `Unreadable`."""
    if len(text) > LONGEST:
        raise Unreadable("too long")
    text, unit = split_unit(_unwrapped("".join(_SIGNS.get(character, character) for character in text)))
    tokens = _tokens(_spelled(_unwrapped(text)))
    return Form(_joined(_with_braces(tokens)), unit)


def _unwrapped(text: str) -> str:
    """Without math signs, bold, a full stop around it."""
    text = text.strip("*_`~ ").rstrip(".,;: ")
    for opening, closing in _WRAPPERS:
        if len(text) > len(opening) and text.startswith(opening) and text.endswith(closing):
            return _unwrapped(text[len(opening):-len(closing)])
    return text


def _spelled(text: str) -> str:
    """Thousands without separators, `and` as a comma, plain names as commands."""
    text = _TEXT.sub(r" \1 ", _AND.sub(",", _THOUSANDS.sub("", " ".join(text.split()))))
    text = text.replace("!=", "\\neq ").replace("<=", "\\le ").replace(">=", "\\ge ")
    if _WITH_COMMAS.fullmatch(text):
        return text.replace(",", "")
    mixed = _MIXED.fullmatch(text)
    return f"{mixed[1]}\\frac{{{mixed[2]}}}{{{mixed[3]}}}" if mixed else _ROOT.sub(r"\\sqrt{\1}", text)


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    for token in _TOKEN.findall(text):
        tokens += _read(token)
    tokens = _without_spaces(tokens)
    if not tokens:
        raise Unreadable("nothing")
    if max(_depths(tokens)) > DEEPEST:
        raise Unreadable("nested too deep")
    if len(tokens) > 1 and all(token.isalpha() for token in tokens):
        raise Unreadable("words")
    return tokens


def _read(token: str) -> list[str]:
    """The tokens that stand for one written one."""
    if token.isascii() and token.isalpha():
        if token in _PLAIN_NAMES:
            return [_PLAIN_NAMES[token].strip()]
        if len(token) > 3:
            raise Unreadable("words")
        return list(token)
    if token[-1:].isdigit() and token.isascii():
        if len(token) > LONGEST_NUMBER:
            raise Unreadable("a number too long")
        return [token]
    if token[0] == "\\" and len(token) > 1:
        return _command(token)
    if token in _CHARACTERS:
        return [token]
    if token.isspace():
        return [" "]
    raise Unreadable("a sign that is not read")


def _command(token: str) -> list[str]:
    name = token[1:].replace(" ", "")
    if name in _DROPPED or name in ("!", ",", ";", ":", ""):
        return [" "]
    if name in ("{", "}", "\\"):
        return [token]
    if name.startswith("mathbb") and name[-2] in "NZQRC" or name.partition("{")[2].rstrip("}") in _MATRIX:
        return [token.replace(" ", "")]
    if name in _BECOME:
        return [_BECOME[name]]
    name = _NAMES.get(name, name)
    if name in COMMANDS - {"begin", "end"} | GREEK:
        return ["\\" + name]
    raise Unreadable("a command that is not read")


def _without_spaces(tokens: list[str]) -> list[str]:
    """Spaces mean nothing, but between numbers: 3 4 is neither 34 nor 12."""
    kept: list[str] = []
    for place, token in enumerate(tokens):
        if token != " ":
            if place and kept and kept[-1][-1].isdigit() and token[-1].isdigit() and not _is_argument(kept):
                raise Unreadable("two numbers side by side")
            kept.append(token)
    return kept


def _is_argument(tokens: list[str]) -> bool:
    """Whether the last token is taken by the command before it."""
    return len(tokens) > 1 and tokens[-2] in ("\\frac", "\\binom", "_")


def _depths(tokens: list[str]):
    depth = 0
    for token in tokens:
        depth += (token in "([{" or token == "\\{") - (token in ")]}" or token == "\\}")
        yield depth


# --- braces ------------------------------------------------------------------------------------------------------


def _with_braces(tokens: list[str]) -> list[str]:
    r"""\frac12 as \frac{1}{2}, \sqrt2 as \sqrt{2}, x^2 as x^{2}."""
    found: list[str] = []
    rest = tokens[::-1]
    while rest:
        token = rest.pop()
        found.append(token)
        if token in ("\\frac", "\\binom"):
            found += _argument(rest, first=True) + _argument(rest)
        elif token == "\\sqrt":
            found += (_group(rest) if rest and rest[-1] == "[" else []) + _argument(rest)
        elif token in ("^", "_"):
            found += _argument(rest, whole=True)
            if rest and rest[-1] == token:
                raise Unreadable("a power of a power without braces")
    return found


def _argument(rest: list[str], whole: bool = False, first: bool = False) -> list[str]:
    """Take one argument off `rest` (reversed), in braces. `whole`: a number with all its digits, and a minus.
    `first`: of two digits the second is the next argument."""
    sign = [rest.pop()] if whole and rest and rest[-1] == "-" else []
    if not rest:
        raise Unreadable("an argument is missing")
    if rest[-1] == "{":
        return ["{", *sign, *_group(rest), "}"] if sign else _group(rest)
    if rest[-1] == "(":
        return ["{", *sign, *_group(rest), "}"]
    token = rest.pop()
    if token[-1].isdigit() and len(token) > 1 and not whole:
        if not token.isdigit() or len(token) > 2 or not first:
            raise Unreadable("an argument without braces")
        rest.append(token[1])
        token = token[0]
    if not (token[-1].isalnum() and token[1:] not in COMMANDS):
        raise Unreadable("an argument without braces")
    return ["{", *sign, token, "}"]


def _group(rest: list[str]) -> list[str]:
    """Take a bracketed group off `rest` (reversed), its inside with braces."""
    taken, depth = [], 0
    while rest:
        token = rest.pop()
        taken.append(token)
        depth += (token in ("{", "(", "[")) - (token in ("}", ")", "]"))
        if depth == 0:
            return [taken[0], *_with_braces(taken[1:-1]), taken[-1]]
    raise Unreadable("brackets that do not close")


def _joined(tokens: list[str]) -> str:
    """A space only between letters, and behind a command that a letter follows."""
    following = [*tokens[1:], ""]
    return "".join(token + " " * (token[-1].isalpha() and after[:1].isalpha())
                   for token, after in zip(tokens, following, strict=True))
