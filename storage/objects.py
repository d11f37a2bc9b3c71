"""Objects by key: `put_if_absent, get, list, delete`, on a local disk or on S3. Nothing is ever overwritten.

On a local disk an object is put in six steps, each of which may be the last thing a killed process does:
  1. the folder is made, and its parent synced
  2. a temp file `.tmp-<uuid>` is made beside the target, exclusively
  3. the bytes are written and synced
  4. `link` gives it the target's name, or fails because somebody was first
  5. the folder is synced (by the loser too: it is about to rely on the winner's file)
  6. the temp file is unlinked
A reader therefore sees all of an object or none of it, and a machine that loses power after `put_if_absent`
returned still has it. Trade-offs accepted: a killed writer leaves a temp file for `opd gc`; the file system must
have hard links. Symbolic links below the root and keys that are not clean are refused.
"""

import errno
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from storage import documents
from storage.disk import disk
from storage.errors import IntegrityError, MissingObject, UserError
from storage.layout import STORE_MARKER

STORE_FORMAT = 1
TEMP_PREFIX = ".tmp-"
_CHUNK = 8 << 20
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_=.+-]{0,199}")
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class ObjectInfo:
    """One listed object: its size in bytes and when it was put, in seconds since 1970."""

    key: str
    size: int
    modified: float


class ObjectStore(Protocol):
    """What all of the product asks of a disk or a bucket."""

    url: str

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        """Put bytes, or a file's content, under `key`. False: somebody was first, and theirs stays."""

    def get(self, key: str) -> bytes:
        """All bytes. Raises MissingObject."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, temp files left out."""

    def folders(self, prefix: str = "") -> Sequence[str]:
        """Names of the folders directly below `prefix` (empty, or ending in a slash), sorted."""

    def delete(self, key: str) -> None:
        """Delete; not an error if it is not there."""

    def local_path(self, key: str) -> Path:
        """A file of this machine with the object's bytes, to be read only. Raises MissingObject."""


def check_key(key: str) -> str:
    """Return `key` if it is clean: relative, no `..`, no hidden or odd names. Raises IntegrityError."""
    if len(key) > 900 or not all(_SEGMENT.fullmatch(part) for part in key.split("/")):
        raise IntegrityError(f"key {key[:200]!r} is not clean: it would lie outside the store's layout", "unclean")
    return key


def check_prefix(prefix: str) -> str:
    """Like check_key, for a prefix: empty, a folder with its slash, or the beginning of a name."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


class LocalStore:
    """A store in a folder of this machine (or of a network file system with hard links)."""

    def __init__(self, root: Path | str):
        self.root = Path(root).resolve()
        self.url = str(self.root)

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        target = self._path(key)
        if target.exists():
            _sync_folder(target.parent)
            return False
        _make_folder(target.parent)
        temp = target.with_name(f"{TEMP_PREFIX}{uuid.uuid4().hex}")
        try:
            _write_file(temp, data)
            won = _link(temp, target)
            _sync_folder(target.parent)
        finally:
            _unlink_if_there(temp)
        return won

    def get(self, key: str) -> bytes:
        try:
            return b"".join(_read_chunks(self._path(key)))
        except FileNotFoundError as error:
            raise MissingObject(key) from error

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder, _, start = check_prefix(prefix).rpartition("/")
        yield from self._walk(self._path(folder) if folder else self.root, f"{folder}/" if folder else "", start)

    def folders(self, prefix: str = "") -> Sequence[str]:
        folder = self._path(check_prefix(prefix).removesuffix("/")) if prefix else self.root
        if not folder.is_dir():
            return []
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def delete(self, key: str) -> None:
        _unlink_if_there(self._path(key))

    def holds(self, key: str) -> bool:
        """Whether there is such a file. Raises IntegrityError for a symbolic link, which `list` leaves out."""
        return self._path(key).is_file()

    def local_path(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_file():
            raise MissingObject(key)
        return path

    def _path(self, key: str) -> Path:
        """The file of a key. No part of it, the file included, may be a symbolic link."""
        path = self.root
        for part in check_key(key).split("/"):
            path = path / part
            if path.is_symlink():
                raise IntegrityError(f"{path} is a symbolic link: a store holds only files and folders; remove it",
                                     "symlink")
        return path

    def _walk(self, folder: Path, prefix: str, start: str) -> Iterator[ObjectInfo]:
        if not folder.is_dir():
            return
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if entry.name.startswith(start)), key=lambda entry: entry.name)
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(folder / entry.name, f"{prefix}{entry.name}/", "")
            elif entry.is_file(follow_symlinks=False) and not entry.name.startswith(TEMP_PREFIX):
                try:
                    stat = entry.stat()
                except FileNotFoundError:  # a claim that was given back since
                    continue
                yield ObjectInfo(prefix + entry.name, stat.st_size, stat.st_mtime)


def open_store(url: str | Path, *, create: bool = False) -> ObjectStore:
    """Open the store at a folder or at s3://bucket/prefix.

    A store is marked by `store.json`. With `create`, an absent or empty folder becomes one. Raises UserError for
    an absent folder (without `create`), for a folder that holds something else, and for a store of a newer format.
    """
    store = _store_at(str(url), create)
    try:
        _check_marker(store)
    except MissingObject:
        if not create or _holds_something(store):
            raise _not_a_store(store, create) from None
        store.put_if_absent(STORE_MARKER, documents.seal({"kind": "store", "format": STORE_FORMAT}))
        _check_marker(store)
    return store


def store_exists(url: str | Path) -> bool:
    """Whether there is a store at `url`. Raises UserError for a place that cannot hold one."""
    if "://" not in str(url) and not Path(url).expanduser().exists():
        return False
    try:
        _check_marker(_store_at(str(url), create=False))
    except MissingObject:
        return False
    return True


def exists(store: ObjectStore, key: str) -> bool:
    """Whether the store holds `key`, without its bytes: a manifest of a large round has megabytes."""
    if isinstance(store, LocalStore):
        return store.holds(key)
    return any(info.key == key for info in store.list(key))


def local_path(store: ObjectStore, key: str) -> Path:
    """A file of this machine that holds the object: itself in a local store, a download (once per process) else."""
    return store.local_path(key)


def _store_at(url: str, create: bool) -> ObjectStore:
    if url.startswith("s3://"):
        from storage.s3 import S3Store
        return S3Store(url)
    if "://" in url:
        raise UserError(f"store {url!r} is of a kind that is not known: use a folder or s3://bucket/prefix")
    root = Path(url).expanduser()
    if root.exists() and not root.is_dir():
        raise UserError(f"store {url} is a file: name a folder")
    if not root.exists():
        if not create:
            raise UserError(f"store {url} does not exist: check --store, or start a run there with `opd run`")
        root.mkdir(parents=True)
    return LocalStore(root)


def _check_marker(store: ObjectStore) -> None:
    marker = documents.unseal(store.get(STORE_MARKER), f"{store.url}/{STORE_MARKER}")
    if marker.get("kind") != "store" or marker.get("format") != STORE_FORMAT:
        raise UserError(f"store {store.url} has format {marker.get('format')}, this version reads {STORE_FORMAT}: "
                        "use the version that wrote it")


def _holds_something(store: ObjectStore) -> bool:
    if isinstance(store, LocalStore):
        return any(not name.startswith(TEMP_PREFIX) for name in os.listdir(store.root))
    return next(iter(store.list()), None) is not None


def _not_a_store(store: ObjectStore, create: bool) -> UserError:
    advice = "name an empty or absent folder" if create else "check --store"
    return UserError(f"{store.url} is not a store (it has no {STORE_MARKER}): {advice}")


def _write_file(path: Path, data: bytes | Path) -> None:
    descriptor = disk().open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        for chunk in (data,) if isinstance(data, bytes) else _read_chunks(data.resolve()):
            view = memoryview(chunk)
            while view:
                view = view[disk().write(descriptor, view):]
        disk().fsync(descriptor)
    finally:
        disk().close(descriptor)


def _read_chunks(path: Path) -> Iterator[bytes]:
    descriptor = disk().open(path, os.O_RDONLY)
    try:
        while chunk := disk().read(descriptor, _CHUNK):
            yield chunk
    finally:
        disk().close(descriptor)


def _link(temp: Path, target: Path) -> bool:
    try:
        disk().link(temp, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        raise UserError(f"the file system of {target.parent} has no hard links ({error.strerror}), which commits "
                        "need: keep the store on another disk, or on S3") from error
    return True


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    try:
        disk().mkdir(folder)
    except FileExistsError:  # another worker made it just now
        pass
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = disk().open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        disk().fsync(descriptor)
    finally:
        disk().close(descriptor)


def _unlink_if_there(path: Path) -> None:
    try:
        disk().unlink(path)
    except FileNotFoundError:
        pass
