"""Text for people: what a model or a file wrote may carry control characters, and a terminal obeys them."""

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Co"}
"""Control, format (bidi among them), surrogate and private characters."""


def printable(text: str) -> str:
    """`text` on one line, each hidden character replaced by its code, like \\x1b."""
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character in "\n\t":
        return " "
    if unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
