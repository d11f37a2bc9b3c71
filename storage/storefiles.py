"""A snapshot's shards as a read-only fsspec filesystem, for DuckDB: `opd:///<key>` under any kind of store.

Opening a file checks its size and sha256 (once per process) and, on an object store, brings it here first: of a
thousand rounds only the files that a query opens are moved. Sizes come from receipts, so planning asks the network
nothing. There is no way to write.

With another `base`, the same files under other addresses: `s3://bucket/prefix/<key>`, as other programs know them.
"""

import datetime
import io
import os
import threading
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.spec import AbstractFileSystem

from storage.objects import ObjectStore
from storage.records import ShardFile
from storage.shards import checked_path

BASE = "opd:///"


def address(file: ShardFile, base: str = BASE) -> str:
    """The path under which DuckDB opens a shard."""
    return base + file.key


class SharedFile(io.RawIOBase):
    """A file open for reading in which every thread has a position of its own.

    DuckDB reads at a place by `seek` and then `read`, and its threads share handles (a quarter of them, seen on the
    score checks). With one position a thread that comes between the two makes the other read the wrong bytes.
    """

    def __init__(self, path: Path):
        super().__init__()
        self._file = open(path, "rb", buffering=0)
        self._own = threading.local()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return getattr(self._own, "position", 0)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: os.fstat(self._file.fileno()).st_size}[whence]
        self._own.position = start + offset
        return self._own.position

    def readinto(self, buffer) -> int:
        count = os.preadv(self._file.fileno(), [buffer], self.tell())
        self._own.position = self.tell() + count
        return count

    def read(self, size: int = -1) -> bytes:
        """`size` bytes, fewer only at the end of the file."""
        if size < 0:
            return self.readall()
        parts = []
        while size > 0 and (part := super().read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        self._file.close()
        super().close()


class StoreFiles(AbstractFileSystem):
    """The committed shards in `files`, and nothing else."""

    cachable = False

    def __init__(self, store: ObjectStore, files: Iterable[ShardFile], base: str = BASE):
        super().__init__()
        self.protocol, _, self._folder = base.partition("://")
        self._store, self._base = store, base
        self._files = {file.key: file for file in files}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        file = self._file(path)
        return {"name": address(file, self._base), "size": file.size, "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list:
        key = self._key(path)
        below = [file for file in self._files.values() if PurePosixPath(key) in PurePosixPath(file.key).parents]
        return [self.info(file.key) if detail else address(file, self._base) for file in below]

    def glob(self, path: str, **_: Any) -> list[str]:
        """Keys hold no wildcards: a pattern is a key."""
        key = self._key(path)
        return [address(self._files[key], self._base)] if key in self._files else []

    def exists(self, path: str, **_: Any) -> bool:
        return self._key(path) in self._files

    def isfile(self, path: str) -> bool:
        return self.exists(path)

    def modified(self, path: str) -> datetime.datetime:
        """Shards never change."""
        self._file(path)
        return datetime.datetime.fromtimestamp(0, datetime.UTC)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> "SharedFile":
        if mode != "rb":
            raise PermissionError(f"{path} is read only: shards are never written through SQL")
        file = self._file(path)
        return SharedFile(checked_path(self._store, file.key, file.size, file.sha256))

    def _file(self, path: str) -> ShardFile:
        file = self._files.get(self._key(path))
        if file is None:
            raise FileNotFoundError(path)
        return file

    def _key(self, path: str) -> str:
        return str(path).removeprefix(f"{self.protocol}://").removeprefix(self._folder).lstrip("/")
