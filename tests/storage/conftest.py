"""Stores for the storage tests."""

import os
import tempfile
from pathlib import Path

import pytest
from small_store import make_run, play_round

from storage.objects import open_store


@pytest.fixture
def store(memory_path):
    """An empty local store."""
    return open_store(memory_path / "store", create=True)


@pytest.fixture
def two_rounds(store, tmp_path):
    """A store with run `r`, two committed rounds of two shards."""
    make_run(store, "r", tmp_path / "models" / "base")
    for number in range(2):
        play_round(store, "r", number, tmp_path / "models")
    return store


@pytest.fixture
def memory_path(tmp_path):
    """A folder in memory where there is one: thousands of fsyncs are what these tests do, not what they measure."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="opd-test-") as folder:
        yield Path(folder)
