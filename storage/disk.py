"""The system calls that a local store makes, one method each: the place where tests kill, fail and count them.

Nothing here has a policy. `objects.LocalStore` orders the calls; `set_disk` lets a fault test replace them.
"""

import os
from pathlib import Path


class Disk:
    """The real calls. A fault test subclasses this and overrides `before`, or one method."""

    def before(self, call: str, path) -> None:
        """Runs ahead of every call below, with its name."""

    def open(self, path: Path, flags: int) -> int:
        self.before("create" if flags & os.O_CREAT else "open", path)
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)

    def read(self, descriptor: int, size: int) -> bytes:
        self.before("read", descriptor)
        return os.read(descriptor, size)

    def write(self, descriptor: int, data: memoryview) -> int:
        self.before("write", descriptor)
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self.before("fsync", descriptor)
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        self.before("close", descriptor)
        os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        self.before("link", target)
        os.link(source, target, follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        self.before("unlink", path)
        os.unlink(path)

    def mkdir(self, path: Path) -> None:
        self.before("mkdir", path)
        os.mkdir(path)


_disk = Disk()


def disk() -> Disk:
    """The calls in force in this process."""
    return _disk


def set_disk(calls: Disk) -> None:
    """Put other calls in force, for fault tests."""
    global _disk
    _disk = calls
