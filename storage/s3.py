"""The store on S3 or anything that speaks it: conditional puts (`If-None-Match: *`) decide every race.

The condition is sent with the put of small objects and with the completion of a multipart upload, so that an object
of any size appears whole or not at all. A put whose answer was lost and which is sent again may find its own object
and answer False: callers read back what counts, and find their own bytes. Endpoint and credentials come from the
environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ... or a profile), never from a config.

Multipart uploads that a killed process left behind are invisible and cost money: give the bucket a lifecycle rule.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from storage.errors import MissingObject, UserError
from storage.objects import TEMP_PREFIX, ObjectInfo, check_key, check_prefix
from storage.scratch import scratch_folder

_URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?")
_CONFLICT_TRIES = 5
PART_BYTES = 64 << 20
"""Objects of twice this size and more are uploaded in parts."""


class S3Store:
    """A store below s3://bucket/prefix."""

    def __init__(self, url: str):
        match = _URL.fullmatch(url.rstrip("/"))
        if not match:
            raise UserError(f"store {url!r} is not s3://bucket/prefix: check the bucket's name")
        prefix = check_prefix(match["prefix"] or "")
        self.url = url.rstrip("/")
        self._root = f"{match['bucket']}/{prefix}".rstrip("/")
        self._filesystem()  # a missing extra is told now, not in the middle of a round

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        path = self._path(key)
        for attempt in range(_CONFLICT_TRIES):
            try:
                with self._mistakes_told():
                    if isinstance(data, Path):
                        self._filesystem().put_file(str(data), path, mode="create", chunksize=PART_BYTES)
                    else:
                        self._filesystem().pipe_file(path, data, mode="create", chunksize=PART_BYTES)
                return True
            except FileExistsError:
                return False
            except OSError as error:
                if _error_code(error) in ("PreconditionFailed", "412"):
                    return False
                if _error_code(error) != "ConditionalRequestConflict" or attempt == _CONFLICT_TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def get(self, key: str) -> bytes:
        try:
            with self._mistakes_told():
                return self._filesystem().cat_file(self._path(key))
        except FileNotFoundError as error:
            raise MissingObject(key) from error

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder, _, start = check_prefix(prefix).rpartition("/")
        base = f"{self._root}/{folder}" if folder else self._root
        found = self._filesystem().find(base, detail=True, prefix=start)
        for path, info in sorted(found.items()):
            key = path.removeprefix(f"{self._root}/")
            if key.startswith(prefix) and info["type"] == "file":
                yield ObjectInfo(key, info["size"], info["LastModified"].timestamp())

    def folders(self, prefix: str = "") -> Sequence[str]:
        base = f"{self._root}/{check_prefix(prefix)}".rstrip("/")
        try:
            found = self._filesystem().ls(base, detail=True)
        except FileNotFoundError:
            return []
        return sorted(Path(info["name"]).name for info in found if info["type"] == "directory")

    def delete(self, key: str) -> None:
        self._filesystem().call_s3("delete_object", **self._address(key))

    def local_path(self, key: str) -> Path:
        target = scratch_folder("s3", os.getpid()) / self._root / check_key(key)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{TEMP_PREFIX}{uuid.uuid4().hex}")
            try:
                self._filesystem().get_file(self._path(key), str(partial))
            except FileNotFoundError as error:
                raise MissingObject(key) from error
            partial.replace(target)
        return target

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def _address(self, key: str) -> dict[str, str]:
        bucket, _, rest = self._path(key).partition("/")
        return {"Bucket": bucket, "Key": rest}

    @contextlib.contextmanager
    def _mistakes_told(self) -> Iterator[None]:
        """Turn what a person can mend into one line: no bucket, no credentials, no right."""
        bucket = self._root.partition("/")[0]
        try:
            yield
        except FileNotFoundError as error:
            if _error_code(error) != "NoSuchBucket":
                raise
            raise UserError(f"bucket {bucket} does not exist: create it, or check the store's url") from error
        except PermissionError as error:
            raise UserError(f"bucket {bucket} does not let these credentials in ({error}): check AWS_PROFILE and the "
                            "bucket's policy") from error
        except Exception as error:
            if type(error).__name__ != "NoCredentialsError":  # botocore's; importing it here would cost a second
                raise
            raise UserError(f"no credentials for {self.url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                            "AWS_PROFILE") from error

    @staticmethod
    def _filesystem():
        """s3fs caches it per process and thread; asking each time keeps it right after a fork."""
        try:
            import s3fs
        except ImportError as error:
            raise UserError("a store on S3 needs the extra s3: pip install 'opd-rounds[s3]'") from error
        return s3fs.S3FileSystem(use_listings_cache=False)


def _error_code(error: OSError) -> str:
    response = getattr(error.__cause__ or error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
