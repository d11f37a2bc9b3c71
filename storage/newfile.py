"""A file for people, outside of every store: reports, catalogs, answers. All of it appears, or nothing does.

    with new_file(target, force=False) as temp:
        ...                                # write `temp`, which lies beside the target

The temp file is synced, then gets the target's name: with `link`, which fails if somebody was first, or, with `force`,
with `replace`, so that a program that has the old file open keeps it. Trade-offs accepted: a killed writer leaves
`.tmp-<uuid>` beside the target; on a file system without hard links two writers at once are not told apart.
"""

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from storage.errors import UserError
from storage.objects import TEMP_PREFIX, LocalStore, ObjectStore

_URL = re.compile(r"[a-z0-9]+:/")
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def check_target(target: Path, store: ObjectStore | None = None, *, force: bool = False) -> Path:
    """`target`, if a file can be put there. Raises UserError with one line if not; asks the disk, writes nothing."""
    try:
        _check(target, store, force)
    except OSError as error:  # no right to look, a name too long
        raise _cannot(target, error) from error
    return target


def _check(target: Path, store: ObjectStore | None, force: bool) -> None:
    if _URL.match(str(target)) or not target.name:
        raise UserError(f"{target} is not a file of this machine: name one")
    if target.is_symlink() or target.exists() and not target.is_file():
        raise UserError(f"{target} is a folder, a link or a device: name an ordinary file")
    if target.exists() and not force:
        raise UserError(f"{target} exists already: name another file, or replace it with --force")
    if not target.parent.is_dir():
        raise UserError(f"the folder {target.parent} does not exist: make it, or name another file")
    if isinstance(store, LocalStore) and store.root in target.resolve().parents:
        raise UserError(f"{target} lies inside the store, which holds only what rounds wrote: name a file outside")


def _cannot(target: Path, error: OSError) -> UserError:
    return UserError(f"{target} cannot be written ({error.strerror}): name a file elsewhere")


@contextlib.contextmanager
def new_file(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A path to write to, which becomes `target` when the block ends well. Raises UserError for what cannot be."""
    check_target(target, force=force)
    temp = target.with_name(f"{TEMP_PREFIX}{uuid.uuid4().hex}")
    try:
        yield temp
        sync(temp)
        _name(temp, target, force)
        sync(target.parent)
    except OSError as error:
        if error.errno is None:  # not the disk's: a library's own
            raise
        raise _cannot(target, error) from error
    finally:
        for leftover in target.parent.glob(f"{temp.name}*"):  # DuckDB keeps a log beside its file
            leftover.unlink()


def _name(temp: Path, target: Path, force: bool) -> None:
    if force:
        temp.replace(target)
        return
    try:
        os.link(temp, target, follow_symlinks=False)
    except FileExistsError:
        raise UserError(f"{target} exists already, made just now by somebody else: name another file") from None
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        check_target(target)
        temp.replace(target)


def sync(path: Path) -> None:
    """Make a file, or what a folder lists, survive a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, verb: str) -> None:
    """Make a folder for what `verb` writes. Raises UserError if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{verb}: cannot write to {folder} ({error.strerror}): name another folder with --out") \
            from error
