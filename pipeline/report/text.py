"""Text and numbers as a report shows them. Models, data sets and masks wrote much of the text: it is shown, not obeyed.

`visible` is for every text of theirs. Escaping for HTML or markdown comes after it, where the file is written.
"""

from pathlib import PurePosixPath
from typing import Any

from storage.text import printable

MISSING = "–"
NEWLINE = "↵"
_LINE_ENDS = {"\u2028": "\\u2028", "\u2029": "\\u2029"}
"""They end a line for many readers, and no Unicode category of `printable` holds them."""


def visible(text: str) -> str:
    """`text` with control and bidi characters as codes like \\x1b; line breaks stay."""
    for character, code in _LINE_ENDS.items():
        text = text.replace(character, code)
    return "\n".join(printable(line) for line in text.split("\n"))


def on_one_line(text: str, limit: int = 80) -> str:
    """`visible`, with line breaks as a sign, cut after `limit` characters."""
    shown, cut = shortened(text, limit)
    return visible(shown).replace("\n", NEWLINE) + ("…" if cut else "")


def shortened(text: str, limit: int) -> tuple[str, int]:
    """The first `limit` characters, and how many are left out."""
    return text[:limit], max(0, len(text) - limit)


def place_of_model(path: str) -> str:
    """A model's path without the folders of the host it lies on; names of a hub and relative paths stay."""
    parts = PurePosixPath(path).parts
    if path.startswith(("/", "~")) or ".." in parts or ":\\" in path:
        return f"…/{path.rstrip('/').replace(chr(92), '/').rpartition('/')[2]}"
    return path


# --- numbers: None is a dash ---


def count(value: Any) -> str:
    return MISSING if value is None else f"{int(value):,}"


def number(value: Any, digits: int = 3) -> str:
    """With `digits` decimals; with significant digits where that would read as zero, or is very large."""
    if value is None:
        return MISSING
    if value != 0 and abs(value) < 0.5 * 10**-digits:
        return signed(f"{value:.1e}".replace("e-0", "e-"))
    return signed(f"{value:,.{digits}f}")


def fixed(value: Any, digits: int) -> str:
    """With `digits` decimals, whatever its size."""
    return MISSING if value is None else signed(f"{value:,.{digits}f}")


def percent(value: Any) -> str:
    return MISSING if value is None else signed(f"{100 * value:.1f} %")


def seconds(value: Any) -> str:
    if value is None:
        return MISSING
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(value: Any) -> str:
    """Bytes in powers of 1000."""
    if value is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def interval(value: Any, low: Any, high: Any) -> str:
    """A share with its interval, in percent."""
    return MISSING if value is None else f"{percent(value)} ({100 * low:.1f} to {100 * high:.1f})"


def signed(text: str) -> str:
    """With a minus sign in place of the hyphen."""
    return text.replace("-", "−")
