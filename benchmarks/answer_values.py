r"""Values of reference answers, worked out without the code under test, and reference answers altered and rewritten.

    leaves(r"(3, \frac{1}{2}]")                 # the parts that have a value: ["3", r"\frac{1}{2}"]
    value(r"\frac{11+9a}{20}", 1)               # a float; letters have fixed values at each of three points
    altered(r"\frac{1}{2}", random.Random(0))   # ("digit changed", r"\frac{1}{3}")

`value` is a recursive descent over the LaTeX of the reference answers, in floats; it knows neither sympy nor pipeline.
An altered answer has exactly one part that differs, and only one for which `value` says so (by a relative 1e-9 at all
three points; by its absolute value behind a \pm and on one side of `= 0`) is handed out; other answers differ by
construction: another bracket of an interval, another letter, another word. One part that differs makes a tuple, an
interval, a matrix, a list and an equation without a common factor differ. A rewritten answer has the same values by
`value`, part by part.
"""

import math
import random
import re

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_POINTS = [{letter: random.Random(f"{point}{letter}").uniform(0.3, 2.5) for letter in LETTERS} for point in range(3)]
_TOKEN = re.compile(r"\\[A-Za-z]+|[0-9]*\.?[0-9]+|[A-Za-z]|\S")
_CUT = re.compile(r"(\\begin\{pmatrix\}|\\end\{pmatrix\}|\\\\|&|\\cup|\\pm|,|=|\\in\b|\\[{}]|\[|\])")
_THOUSANDS = re.compile(r",(?:\\!)? ?[0-9]{3}(?![0-9])")
_NOISE = re.compile(r"\\left|\\right|\\[!,;$%]|\^\\circ|\\(?:text|mbox)\{[^{}]*\}(?:\^[0-9])?")


def leaves(reference: str) -> list[tuple[int, int]]:
    """Places of the parts that have a value, left to right."""
    text, places, start = reference, [], 0
    outer = re.match(r"\s*(?:\\left)?\s*\(", text) and "," in text
    cuts = [match.span() for match in _CUT.finditer(text) if not _THOUSANDS.match(text, match.start())]
    if outer:
        cuts += [match.span() for match in re.finditer(r"(?:\\left|\\right)?\s*[()]", text)]
    for left, right in [*sorted(cuts), (len(text), len(text))]:
        if text[start:left].strip():
            places.append((start, left))
        start = max(start, right)
    return places


def value(text: str, point: int = 0) -> float:
    """Raises ValueError for what it does not read."""
    text = _NOISE.sub(" ", re.sub(r"(?<=[0-9]),(?:\\! ?)?(?=[0-9]{3})", "", text)).replace("\\dfrac", "\\frac")
    text = text.replace("\\tfrac", "\\frac")
    base = re.fullmatch(r"\s*([0-9]+)_\{?([0-9]+)\}?\s*", text)
    if base:
        return float(int(base[1], int(base[2])))
    tokens = _TOKEN.findall(text)[::-1]
    found = _sum(tokens, _POINTS[point])
    if tokens:
        raise ValueError(text)
    return found


def same(one: str, other: str, unsigned: bool = False) -> bool:
    """Whether two parts have the same value at all points. Raises ValueError."""
    pairs = [(value(one, point), value(other, point)) for point in range(3)]
    if unsigned:
        pairs = [(abs(left), abs(right)) for left, right in pairs]
    return all(math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-12) for left, right in pairs)


def _sum(tokens: list[str], letters: dict) -> float:
    total = _product(tokens, letters)
    while tokens and tokens[-1] in "+-":
        sign = 1 if tokens.pop() == "+" else -1
        total += sign * _product(tokens, letters)
    return total


def _product(tokens: list[str], letters: dict) -> float:
    sign = 1
    while tokens and tokens[-1] in "+-":
        sign = -sign if tokens.pop() == "-" else sign
    mixed = re.match(r"[0-9]+\\frac\{?[0-9]+\}?\{?[0-9]+\}?$", "".join(tokens[::-1]))
    total = _power(tokens, letters)
    if mixed:
        total += _power(tokens, letters)
    while tokens and tokens[-1] not in "+-)}":
        divides = tokens[-1] == "/"
        if tokens[-1] in ("/", "\\cdot", "*"):
            tokens.pop()
        factor = _power(tokens, letters)
        total = total / factor if divides else total * factor
    return sign * total


def _power(tokens: list[str], letters: dict) -> float:
    base = _atom(tokens, letters)
    if tokens and tokens[-1] == "^":
        tokens.pop()
        base **= _argument(tokens, letters)
    return base


def _argument(tokens: list[str], letters: dict) -> float:
    """A group in braces, or one character."""
    if tokens and tokens[-1].isdigit() and len(tokens[-1]) > 1:
        digits = tokens.pop()
        tokens.append(digits[1:])
        return float(digits[0])
    return _atom(tokens, letters)


def _atom(tokens: list[str], letters: dict) -> float:
    token = tokens.pop() if tokens else ""
    if token in ("(", "{") and token:
        inside = _sum(tokens, letters)
        if not tokens or tokens.pop() != {"(": ")", "{": "}"}[token]:
            raise ValueError("brackets")
        return inside
    if token == "\\frac":
        return _argument(tokens, letters) / _argument(tokens, letters)
    if token == "\\sqrt":
        return math.sqrt(_argument(tokens, letters))
    if token == "\\cot":
        return 1 / math.tan(_atom(tokens, letters))
    if token == "\\pi":
        return math.pi
    if token in letters:
        return letters[token]
    return float(token)


# --- alterations -------------------------------------------------------------------------------------------------


WORDS = ["Evelyn", "Navin", "Karla", "east", "west", "even", "odd", "ellipse", "circle", "parabola"]


def altered(reference: str, chance: random.Random) -> tuple[str, str]:
    """(what was done, the altered answer). Raises ValueError where nothing was found to be altered."""
    word = re.fullmatch(r"\\text\{(\(?)([A-Za-z]+)(\)?)\}", reference)
    if word:
        others = [each for each in ("ABCDEF" if len(word[2]) == 1 else WORDS) if each != word[2]]
        return "another word or letter", f"\\text{{{word[1]}{chance.choice(others)}{word[3]}}}"
    places = leaves(reference)
    for _ in range(100):
        if re.search(r"[(\[].*,.*[)\]]", reference) and "begin" not in reference and chance.random() < 0.15:
            found = _other_bracket(reference, chance)
            if found:
                return "interval bound opened or closed", found
        start, end = chance.choice(places)
        kind, change = chance.choice(_CHANGES)
        part = reference[start:end]
        changed = change(part, chance)
        unsigned = reference[:start].rstrip().endswith("\\pm") or bool(re.search("= ?0$", reference))
        try:
            if changed and not same(part, changed, unsigned):
                return kind, reference[:start] + changed + reference[end:]
        except (ValueError, ZeroDivisionError, OverflowError, IndexError):
            continue
    raise ValueError(f"nothing to alter in {reference}")


def _other_bracket(reference: str, chance: random.Random) -> str | None:
    """An interval with one finite bound opened or closed; tuples and points have the same brackets, and change too."""
    if reference.count(",") != 1 + reference.count("\\cup") or "{" in reference.replace("\\frac{", ""):
        return None
    places = [match.start() for match in re.finditer(r"[()\[\]]", reference)
              if "infty" not in reference[max(match.start() - 9, 0):match.start() + 9]]
    place = chance.choice(places) if places else None
    turned = dict(zip("()[]", "[]()"))
    return None if place is None else reference[:place] + turned[reference[place]] + reference[place + 1:]


def _digit(part: str, chance: random.Random) -> str | None:
    places = [place for place, character in enumerate(part) if character.isdigit()]
    if not places:
        return None
    place = chance.choice(places)
    return part[:place] + chance.choice([digit for digit in "123456789" if digit != part[place]]) + part[place + 1:]


def _sign(part: str, chance: random.Random) -> str:
    bare = part.lstrip()
    return bare[1:] if bare.startswith("-") else "-" + bare if not re.search(r".[+-]", bare) else f"-({bare})"


def _dropped(part: str, chance: random.Random) -> str | None:
    terms = terms_of(part)
    return None if len(terms) < 2 else "".join(terms[:-1] if chance.random() < 0.5 else terms[1:]).lstrip("+ ")


def _inverted(part: str, chance: random.Random) -> str:
    return re.sub(r"\\d?frac\{([^{}]*)\}\{([^{}]*)\}", r"\\frac{\2}{\1}", part, count=1)


def _off_by_one(part: str, chance: random.Random) -> str:
    step = chance.choice((1, -1))
    return re.sub(r"(?<![0-9.,^])[0-9]+(?![0-9.,])", lambda match: str(int(match[0]) + step), part, count=1)


def _ten_times(part: str, chance: random.Random) -> str:
    return re.sub(r"(?<![0-9.,])[1-9][0-9]*(?![0-9.,])", lambda match: match[0] + "0", part, count=1)


def _two_digits_swapped(part: str, chance: random.Random) -> str:
    return re.sub(r"(?<![0-9])([1-9])([1-9])", r"\2\1", part, count=1)


def _other_power(part: str, chance: random.Random) -> str | None:
    return re.sub(r"\^([0-9])", lambda match: f"^{int(match[1]) + 1}", part, count=1)


def _without_root(part: str, chance: random.Random) -> str:
    return re.sub(r"\\sqrt\{([^{}]*)\}", r"\1", part)


_CHANGES = [("digit changed", _digit), ("sign flipped", _sign), ("term dropped", _dropped),
            ("fraction inverted", _inverted), ("off by one", _off_by_one), ("ten times", _ten_times),
            ("digits swapped", _two_digits_swapped), ("other power", _other_power), ("root left out", _without_root)]


def terms_of(part: str) -> list[str]:
    """Terms with their signs, cut at the + and - outside of all brackets."""
    depth, cuts = 0, [0]
    for place, character in enumerate(part):
        depth += (character in "({[") - (character in ")}]")
        if depth == 0 and place and character in "+-" and part[:place].rstrip()[-1:] not in ("", "^", "(", "{"):
            cuts.append(place)
    return [part[start:end] for start, end in zip(cuts, [*cuts[1:], len(part)])]


# --- rewritings --------------------------------------------------------------------------------------------------


def rewritten(reference: str) -> list[tuple[str, str]]:
    """(what was done, the same answer in another form), each checked part by part where the parts have values."""
    tried = [(kind, "".join(form(piece) if is_leaf else piece for is_leaf, piece in _pieces(reference)))
             for kind, form in _FORMS]
    tried += [("spaces left out", re.sub(r"(?<![A-Za-z]) | (?![A-Za-z])", "", reference)),
              ("in math signs", f"${reference}$"), ("\\left, \\right", _with_left(reference))]
    if re.fullmatch(r"[-0-9]+(?:, ?[-0-9]+)+", reference) and not _THOUSANDS.search(reference):
        tried.append(("other order", ", ".join(reversed(reference.replace(" ", "").split(",")))))
    return [(kind, text) for kind, text in tried if text != reference and _same_parts(reference, text, kind)]


def _pieces(reference: str):
    start = 0
    for left, right in leaves(reference):
        yield False, reference[start:left]
        yield True, reference[left:right]
        start = right
    yield False, reference[start:]


def _same_parts(reference: str, text: str, kind: str) -> bool:
    if kind in ("other order", "in math signs", "\\left, \\right"):
        return True
    one, other = ([each[left:right] for left, right in leaves(each)] for each in (reference, text))
    try:
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other))
    except (ValueError, ZeroDivisionError, OverflowError, IndexError):
        return kind == "spaces left out"


def _turned(part: str) -> str:
    terms = terms_of(part.strip())
    first = terms[0].strip()
    turned = [term.strip() for term in terms[:0:-1]] + [first if first[:1] == "-" else f"+ {first}"]
    return part if len(terms) < 2 else " ".join(turned).lstrip("+ ")


def _decimal(part: str) -> str:
    match = re.fullmatch(r"\s*(-?)\\d?frac\{([0-9]+)\}\{([0-9]+)\}\s*", part)
    return f"{match[1]}{int(match[2]) / int(match[3]):g}" if match else part


def _thousands(part: str) -> str:
    return f"{int(part):,}" if re.fullmatch(r"[0-9]{4,}", part.strip()) else part


def _as_is_or(pattern: str, becomes):
    return lambda part: re.sub(pattern, becomes, part)


_FRAC = r"\\d?frac\{([0-9]+)\}\{([0-9]+)\}"
_FORMS = [
    ("\\dfrac", _as_is_or(r"\\frac\b", r"\\dfrac")), ("\\tfrac", _as_is_or(r"\\d?frac\b", r"\\tfrac")),
    ("a slash", _as_is_or(rf"^\s*(-?){_FRAC}\s*$", r"\1\2/\3")),
    ("not in lowest terms", _as_is_or(_FRAC, lambda m: f"\\frac{{{3 * int(m[1])}}}{{{3 * int(m[2])}}}")),
    ("decimal", _decimal), ("point zero", _as_is_or(r"^\s*(-?[0-9]+)\s*$", r"\1.0")), ("thousands", _thousands),
    ("terms turned", _turned), ("without unit", _as_is_or(r"\\(?:text|mbox)\{[^{}]*\}(?:\^[0-9])?|\^\\circ|\\\$", "")),
    ("over one", _as_is_or(r"^\s*([-0-9]+)\s*$", r"\\frac{\1}{1}")),
    ("root in braces", _as_is_or(r"\\sqrt([0-9])", r"\\sqrt{\1}")),
    ("with \\cdot", _as_is_or(r"(?<=[0-9]) ?(?=\\(?:sqrt|pi)|[a-zA-Z])", r" \\cdot ")),
]


def _with_left(reference: str) -> str:
    return reference if re.search(r"\\(?:left|\{|text)", reference) else re.sub(
        r"[(\[]", r"\\left\g<0>", re.sub(r"[)\]]", r"\\right\g<0>", reference))
