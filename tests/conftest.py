"""Shared by all tests: a machine with two cores, no network, and no home of the user's."""

import os
import signal

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

signal.signal(signal.SIGINT, signal.default_int_handler)
"""A shell ignores Ctrl-C in what it starts in the background, and so would every process that a test starts."""

COSTLY = ("prefect", "played", "vllm_engine", "vllm_server")
"""Session fixtures that take 10 s and more to set up: all tests that ask for one run in one worker."""


def pytest_collection_modifyitems(items):
    """Two workers share the suite (pytest-xdist, --dist loadgroup): a file each, or a costly fixture with its tests."""
    for item in items:
        costly = next((name for name in COSTLY if name in item.fixturenames), None)
        item.add_marker(pytest.mark.xdist_group(costly or item.nodeid.split("::")[0]))
