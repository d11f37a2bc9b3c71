"""The `vocabulary` view's rows: token ids as text, from the tokenizer.json of a run's first checkpoint.

Only `opd sql` needs it, to show tokens to people, so it reads the file itself and imports no tokenizer library.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.records import CheckpointFiles
from storage.shards import checked_path
from storage.snapshot import Snapshot

SCHEMA = pa.schema([("run", pa.string()), ("token_id", pa.int32()), ("token_text", pa.string())])


def vocabulary(snapshot: Snapshot) -> pa.Table:
    """Rows of every run whose first checkpoint has a tokenizer.json."""
    return pa.concat_tables([SCHEMA.empty_table(), *(_rows(snapshot, run) for run in sorted(snapshot.documents))])


def token_texts(file: Path) -> dict[int, str]:
    """Id -> text of a tokenizer.json: BPE and WordPiece (a dict of ids) and Unigram (a list of pieces)."""
    document = json.loads(file.read_bytes())
    pieces = document["model"].get("vocab", {})
    ids = pieces if isinstance(pieces, dict) else {piece: index for index, (piece, _) in enumerate(pieces)}
    decode = _decode_bytes if _is_byte_level(document) else str
    texts = {index: decode(piece) for piece, index in ids.items()}
    return texts | {added["id"]: added["content"] for added in document.get("added_tokens", [])}


def _rows(snapshot: Snapshot, run: str) -> pa.Table:
    document = snapshot.documents[run].get("student_checkpoint")
    files = CheckpointFiles.from_dict(document).files if document else []
    found = next((file for file in files if file.key.endswith("/tokenizer.json")), None)
    if found is None:
        return SCHEMA.empty_table()
    texts = sorted(token_texts(checked_path(snapshot.store, found.key, found.size, found.sha256)).items())
    return pa.table({"run": pa.array([run] * len(texts), pa.string()),
                     "token_id": pa.array([index for index, _ in texts], pa.int32()),
                     "token_text": pa.array([text for _, text in texts], pa.string())})


def _is_byte_level(document: dict[str, Any]) -> bool:
    decoder = document.get("decoder") or {}
    return any(part.get("type") == "ByteLevel" for part in [decoder, *decoder.get("decoders", [])])


def _decode_bytes(piece: str) -> str:
    """Undo byte-level BPE's spelling of bytes as printable characters."""
    table = _byte_of_character()
    if not all(character in table for character in piece):
        return piece
    return bytes(table[character] for character in piece).decode("utf-8", errors="backslashreplace")


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the other 68 are moved to 256 and up."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + index): byte for index, byte in enumerate(moved)}
