"""A snapshot's shards as a read-only fsspec filesystem, for DuckDB: `opd:///<key>` under any kind of store.

Opening a file checks its size and sha256 (once per process) and, on an object store, brings it here first: of a
thousand rounds only the files that a query opens are moved. Sizes come from receipts, so planning asks the network
nothing. There is no way to write.
"""

import datetime
import io
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from fsspec.spec import AbstractFileSystem

from storage.objects import ObjectStore
from storage.records import ShardFile
from storage.shards import checked_path

PROTOCOL = "opd"


def address(file: ShardFile) -> str:
    """The path under which DuckDB opens a shard."""
    return f"{PROTOCOL}:///{file.key}"


class StoreFiles(AbstractFileSystem):
    """The committed shards in `files`, and nothing else."""

    protocol = PROTOCOL
    cachable = False

    def __init__(self, store: ObjectStore, files: Iterable[ShardFile]):
        super().__init__()
        self._store = store
        self._files = {file.key: file for file in files}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        file = self._file(path)
        return {"name": address(file), "size": file.size, "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list:
        key = self._key(path)
        below = [file for file in self._files.values() if PurePosixPath(key) in PurePosixPath(file.key).parents]
        return [self.info(file.key) if detail else address(file) for file in below]

    def glob(self, path: str, **_: Any) -> list[str]:
        """Keys hold no wildcards: a pattern is a key."""
        key = self._key(path)
        return [address(self._files[key])] if key in self._files else []

    def exists(self, path: str, **_: Any) -> bool:
        return self._key(path) in self._files

    def isfile(self, path: str) -> bool:
        return self.exists(path)

    def modified(self, path: str) -> datetime.datetime:
        """Shards never change."""
        self._file(path)
        return datetime.datetime.fromtimestamp(0, datetime.UTC)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BufferedReader:
        if mode != "rb":
            raise PermissionError(f"{path} is read only: shards are never written through SQL")
        file = self._file(path)
        return open(checked_path(self._store, file.key, file.size, file.sha256), "rb")

    def _file(self, path: str) -> ShardFile:
        file = self._files.get(self._key(path))
        if file is None:
            raise FileNotFoundError(path)
        return file

    @staticmethod
    def _key(path: str) -> str:
        return str(path).removeprefix(f"{PROTOCOL}://").lstrip("/")
