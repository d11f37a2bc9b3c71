"""JSON as the store writes it: one dict has exactly one form in bytes, so that hashes of documents mean something.

Canonical form: sorted keys, no spaces, UTF-8, no NaN, a newline at the end. A sealed document carries the sha256 of
the rest of itself under `checksum`: a flipped bit is found by whoever reads it, also where nothing refers to it yet.
"""

import hashlib
import json
from typing import Any

from storage.errors import IntegrityError

CHECKSUM = "checksum"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def dump(document: dict[str, Any]) -> bytes:
    """Canonical bytes. Raises ValueError for NaN and infinities, TypeError for what JSON cannot hold."""
    text = json.dumps(document, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.encode() + b"\n"


def load(data: bytes, what: str = "document") -> dict[str, Any]:
    """Parse canonical bytes; `what` names them in the IntegrityError that anything else raises."""
    if not data:
        raise IntegrityError(f"{what} is empty: its content was lost after it was written", "empty")
    if not data.endswith(b"}\n"):
        raise IntegrityError(f"{what} is truncated: it ends after {len(data)} bytes in the middle of a document",
                             "truncated")
    try:
        document = json.loads(data, parse_constant=_refuse_constant)
    except ValueError as error:
        raise IntegrityError(f"{what} is not JSON ({error}): it was damaged or written by hand",
                             "unparseable") from error
    except RecursionError as error:
        raise IntegrityError(f"{what} is not a document: it nests too deep", "unparseable") from error
    if not isinstance(document, dict):
        raise IntegrityError(f"{what} is a JSON {type(document).__name__}, not an object: something else wrote it",
                             "unparseable")
    return document


def seal(document: dict[str, Any]) -> bytes:
    """Canonical bytes with the checksum inside."""
    assert CHECKSUM not in document, "already sealed"
    return dump({**document, CHECKSUM: sha256(dump(document))})


def unseal(data: bytes, what: str = "document") -> dict[str, Any]:
    """The document of `seal`, without its checksum. Raises IntegrityError unless every byte is as it was written."""
    document = load(data, what)
    checksum = document.pop(CHECKSUM, None)
    if checksum is None:
        raise IntegrityError(f"{what} is foreign: it has no checksum, so this product did not write it", "foreign")
    if seal(document) != data:
        raise IntegrityError(f"{what} was changed after it was written: its checksum does not match its content",
                             "changed")
    return document


def differing_keys(left: Any, right: Any, prefix: str = "") -> list[str]:
    """Dotted keys at which two documents differ, in order; a list differs as a whole."""
    if not (isinstance(left, dict) and isinstance(right, dict)):
        return [] if left == right and type(left) is type(right) else [prefix]
    keys = []
    for name in sorted(left.keys() | right.keys()):
        dotted = f"{prefix}.{name}" if prefix else name
        if name in left and name in right:
            keys += differing_keys(left[name], right[name], dotted)
        else:
            keys.append(dotted)
    return keys


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
