"""SQL masks as text: from sql/masks by name, or a .sql file of the user's.

run.json records the text when a run begins: that is what runs, and a file that was edited since then is refused.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config.model import Mask, SqlMask
from storage import sqlfiles
from storage.errors import UserError
from storage.guard import MAX_CHARACTERS

RECORDED_AS = "sql_masks"
"""Key of run.json under which `texts` is stored."""
_SHIPPED = re.compile(r"[a-z][a-z0-9_]*")


def texts(masks: Sequence[Mask]) -> dict[str, str]:
    """The config's `file` of every SQL mask -> its SQL. Raises UserError for a file that cannot be one."""
    return {mask.file: _read(mask.file) for mask in masks if isinstance(mask, SqlMask)}


def text(mask: SqlMask, document: Mapping) -> str:
    """The mask's SQL as run.json recorded it, else as it is now."""
    recorded = document.get(RECORDED_AS, {})
    return recorded[mask.file] if mask.file in recorded else _read(mask.file)


def refuse_edited(masks: Sequence[Mask], document: Mapping) -> None:
    """Raise UserError if a mask's file says something else than run.json recorded. A file that is gone says nothing."""
    recorded = document.get(RECORDED_AS, {})
    for mask in masks:
        if isinstance(mask, SqlMask) and mask.file in recorded and _is_there(mask.file):
            if _read(mask.file) != recorded[mask.file]:
                raise UserError(f"mask {mask.file} changed since the run began: use another run id, or restore it")


def _is_there(file: str) -> bool:
    return file in sqlfiles.names("masks") or (not _SHIPPED.fullmatch(file) and Path(file).expanduser().is_file())


def _read(file: str) -> str:
    if _SHIPPED.fullmatch(file):
        return sqlfiles.load("masks", file).text
    path = Path(file).expanduser()
    if path.suffix != ".sql" or not path.is_file():
        raise UserError(f"mask file {file!r} is neither a name in sql/masks ({', '.join(sqlfiles.names('masks'))}) nor "
                        "a .sql file that exists")
    data = path.read_bytes()
    try:
        found = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"mask file {file} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if len(found) > MAX_CHARACTERS:
        raise UserError(f"mask file {file} has {len(found)} characters, more than {MAX_CHARACTERS}: shorten it")
    return found
