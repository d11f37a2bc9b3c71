import errno
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from forks import CHANGES, write
from small_store import contents

from storage.disk import Disk, set_disk
from storage.errors import MissingObject
from storage.objects import LocalStore, open_store
from storage.verify import verify

HERE = Path(__file__).parent
ERRORS = (errno.ENOSPC, errno.EIO, errno.EINTR)


class FailAt(Disk):
    """The n-th call fails with `code`; with code 0, the n-th write is a short one of a single byte."""

    def __init__(self, n: int, code: int, counted: tuple[str, ...]):
        self.n, self.code, self.counted, self.calls, self.failed = n, code, counted, 0, None

    def before(self, call, path):
        self.calls += call in self.counted
        if self.calls == self.n and not self.failed:
            self.failed = call
            if self.code:
                raise OSError(self.code, os.strerror(self.code), str(path))

    def write(self, descriptor, data):
        failed_before = self.failed
        self.before("write", descriptor)
        return os.write(descriptor, data[:1] if self.failed and not failed_before else data)


@pytest.fixture
def faults():
    """set_disk, put right again afterwards."""
    yield set_disk
    set_disk(Disk())


def reference(folder: Path) -> dict[str, bytes]:
    write(folder)
    return contents(folder / "store")


def test_a_writer_killed_at_any_io_call_loses_nothing_committed_and_shows_nothing_half(memory_path):
    expected = reference(memory_path / "whole")
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}"}
    subprocess.run([sys.executable, HERE / "forks.py", "kill", memory_path], env=environment, check=True, timeout=240)
    calls = sorted(int(path.name) for path in memory_path.iterdir() if path.name.isdigit())
    assert len(calls) > 100 and calls == list(range(1, len(calls) + 1))
    for n in calls:
        seen = contents(memory_path / str(n) / "store") if (memory_path / str(n) / "store").exists() else {}
        assert all(expected[key] == data for key, data in seen.items()), f"half visible after call {n}"
        log = memory_path / str(n) / "returned.log"
        assert set(log.read_text().split() if log.exists() else ()) <= seen.keys(), f"lost after call {n}"
        write(memory_path / str(n))
        assert contents(memory_path / str(n) / "store") == expected, f"resumed after call {n}"
    assert verify(open_store(memory_path / str(n) / "store")) == []


def test_a_round_resumes_after_any_io_call_failed(memory_path, faults):
    expected = reference(memory_path / "whole")
    for n in itertools.count(1):
        disk = FailAt(n, (*ERRORS, 0)[n % 4], CHANGES)
        faults(disk)
        try:
            write(memory_path / str(n))
        except OSError as error:
            assert error.errno in ERRORS
        faults(Disk())
        if not disk.failed:
            break
        seen = contents(memory_path / str(n) / "store") if (memory_path / str(n) / "store").exists() else {}
        assert all(expected[key] == data for key, data in seen.items()), f"half visible after call {n}"
        write(memory_path / str(n))
        assert contents(memory_path / str(n) / "store") == expected, f"resumed after call {n} ({disk.failed})"
    assert n > 100


@pytest.mark.parametrize("code", (*ERRORS, 0))
@pytest.mark.parametrize("from_file", [False, True])
def test_an_object_is_there_whole_or_not_at_all_whatever_call_fails(memory_path, faults, code, from_file):
    data = bytes(range(256)) * 40
    (memory_path / "source").write_bytes(data)
    for n in itertools.count(1):
        store = open_store(memory_path / f"{code}-{n}", create=True)
        disk = FailAt(n, code, ("open", "read", "close", *CHANGES))
        faults(disk)
        try:
            assert store.put_if_absent("a/b/c", memory_path / "source" if from_file else data)
        except OSError as error:
            assert error.errno == code
        faults(Disk())
        assert read_or_none(store, "a/b/c") in (None, data)
        assert store.put_if_absent("a/b/c", data) in (True, False) and store.get("a/b/c") == data
        if disk.failed != "unlink" and code:
            assert not list(store.root.rglob(".tmp-*")), disk.failed
        if not disk.failed:
            break
    assert n > 10


def read_or_none(store: LocalStore, key: str) -> bytes | None:
    try:
        return store.get(key)
    except MissingObject:
        return None
