"""Temp folders of this process that do not outlive it by much, however it ends: downloads from S3, DuckDB's spill.

A folder is locked for as long as its process lives; the kernel drops the lock at SIGKILL and `os._exit` too, where no
exit handler runs. Whoever makes the next folder of that kind removes those that nobody holds: no guess by age, and no
process id, which another container would give another meaning.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_made: dict[tuple[str, int], Path] = {}


def scratch_folder(kind: str, process: int) -> Path:
    """The folder `opd-<kind>-*` of the process, which is `os.getpid()`: a fork has its own, not its parent's."""
    assert process == os.getpid()
    if (kind, process) not in _made:
        _made[kind, process] = _make(kind, process)
    return _made[kind, process]


def empty(kind: str, keep: Path | None = None) -> None:
    """Remove what lies in this process's folder of that kind, if it has one, but for what lies in the folder `keep`."""
    if folder := _made.get((kind, os.getpid())):
        _clear(folder, keep)


def _clear(folder: Path, keep: Path | None) -> None:
    for each in folder.iterdir():
        if keep is not None and keep != each and keep.is_relative_to(each):
            _clear(each, keep)
        elif keep != each and each.is_dir():
            shutil.rmtree(each, ignore_errors=True)
        elif keep != each:
            each.unlink()


def _make(kind: str, process: int) -> Path:
    _remove_abandoned(kind)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(kind)))
        descriptor = _lock(folder)
        if descriptor is not None and folder.exists():  # else another process took it for an abandoned one
            atexit.register(remove_own, folder, process)
            return folder
        if descriptor is not None:
            os.close(descriptor)


def remove_own(folder: Path, process: int) -> None:
    """Remove `folder` with all that is in it, unless this is a fork of the process that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(kind: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix(kind)}*"):
        descriptor = _lock(folder)
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder until it is closed; None if another process does, or it is not ours."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # removed just now, another user's, or no folder
        return None
    try:
        if os.fstat(descriptor).st_uid == os.getuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def _prefix(kind: str) -> str:
    return f"opd-{kind}-"
