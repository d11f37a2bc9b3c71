"""Processes of tests: watched, and killed with everything that they started."""

import contextlib
import os
import signal
import subprocess
import time


def wait_for(what, seconds: float = 120, every: float = 0.02):
    """What `what` returns once it is true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(every)
    return found


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], text=True, capture_output=True).stdout.split()
    return [int(each) for each in found]


def descendants(pid: int) -> list[int]:
    """Processes started by `pid` and by those."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL a process and everything that it started: what a machine that goes down does."""
    for pid in (process.pid, *descendants(process.pid)):
        with contextlib.suppress(ProcessLookupError):  # ended with its parent
            os.kill(pid, signal.SIGKILL)
    process.wait()


def stage_child(pid: int) -> int:
    """The process that computes: the one child of the fork server that `pid` started."""
    (child,) = (grandchild for child in children(pid) for grandchild in children(child))
    return child
