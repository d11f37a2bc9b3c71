r"""Units of answers: 15 cm^2, 90^\circ, $18.90, 50\%.

    split_unit(r"15\mbox{ cm}^2")    # ("15", ("cm", 2))

An answer may leave its unit out. Where two answers have units of the table that differ, they differ: 5 cm is not 5 m.
Other words (12 apples) are not in the table and never make a difference.
"""

import re

_SPELLINGS = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
    "in": "inch inches", "ft": "foot feet", "yd": "yds yard", "mi": "mile", "mg": "milligram", "g": "gram",
    "kg": "kilogram", "lb": "lbs", "oz": "ounce", "ton": "", "s": "sec second", "min": "minute", "h": "hr hrs hour",
    "day": "", "week": "", "month": "", "year": "yr yrs", "ml": "mL milliliter millilitre", "l": "L liter litre",
    "gallon": "gal", "quart": "", "pint": "", "mph": "", "dollar": "$ USD", "cent": "¢", "euro": "€", "yen": "¥",
    "pound": "£", "degree": "° deg", "radian": "rad", "percent": "% pct percentage", "unit": "",
}
"""Name: other spellings. Those of three letters and more may have an s behind them or begin with a capital."""
_NAMES = {spelling: name for name, others in _SPELLINGS.items() for word in [name, *others.split()]
          for spelling in ([word, word + "s", word.capitalize(), word.capitalize() + "s"] if len(word) > 2 else [word])}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_BEFORE = re.compile(r"([-+]?) ?(\\\$|[$€£¥]) ?(?=[-0-9.])")
_BEHIND = re.compile(
    r"(?: *\\(?:text|mbox|mathrm|textrm|textbf|textit) ?\{(?P<braced>[ A-Za-z.]+)\}"
    r"| *\\?(?P<percent>%)| *(?P<sign>[€£¥¢])| ?(?P<degree>°|\^ ?\{? ?\\circ ?\}?|\\degree)"
    r"|(?<=[0-9}) \]])(?P<plain>(?:[A-Za-z]+\.? )?[A-Za-z]{2,})|(?<=[0-9] )(?P<letter>[mgshlL]))"
    r"(?: ?\^ ?(?:\{ ?(?P<braced_power>[23]) ?\}|(?P<power>[23])))?[ .]*")
_NUMBER = re.compile(r"[-+0-9.,/ ]+")
_ANGLE_ASKED = re.compile(r"sin|cos|tan|cot|sec|csc")
_WORD_AT_END = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}$")
LONGEST_UNIT = 40
"""Characters of a unit with its power."""

Unit = tuple[str, int]
"""Name and power: ("cm", 2)."""


def split_unit(text: str) -> tuple[str, Unit | None]:
    """What stands before the unit, and the unit; None if `text` does not end in one that the table has."""
    text = text.strip()
    before = _BEFORE.match(text)
    if before:
        return before[1] + text[before.end():], (_NAMES[before[2][-1]], 1)
    for place in range(max(len(text) - LONGEST_UNIT, 1), len(text)):
        match = _BEHIND.fullmatch(text, place)
        unit = match and _unit_at(match, text[:place])
        if unit:
            return text[:place].strip(), unit
    return text, None


def differ(one: Unit | None, other: Unit | None) -> bool:
    """Whether both are known and not the same."""
    return one is not None and other is not None and one != other


def _unit_at(match: re.Match, value: str) -> Unit | None:
    if match["letter"] and not _NUMBER.fullmatch(value) or _WORD_AT_END.search(value.rstrip()):
        return None  # 2x + 3 m, 10 miles per hour
    if match["degree"] and _ANGLE_ASKED.search(value):  # the sine of 30 degrees is not that of 30
        return None
    words = next(match[kind] for kind in ("braced", "percent", "sign", "degree", "plain", "letter") if match[kind])
    return unit_of("degree" if match["degree"] else words, int(match["braced_power"] or match["power"] or 1))


def unit_of(words: str, power: int = 1) -> Unit | None:
    """The unit of the table that is written as `words`, raised to `power`."""
    *before, name = words.replace(".", " ").split() or [""]
    if before and power == 1 and len(before) == 1:
        power = _POWERS.get(before[0].lower(), 0)
    elif before:
        power = 0
    return (_NAMES[name], power) if power and name in _NAMES else None
