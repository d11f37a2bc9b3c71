"""Processes of tests: watched, and killed with everything that they started."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path


def wait_for(what, seconds: float = 120, every: float = 0.02):
    """What `what` returns once it is true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(every)
    return found


def parents() -> dict[int, int]:
    """Parent of every process of this machine."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], text=True, capture_output=True).stdout.splitlines()
    return {int(pid): int(parent) for pid, parent in map(str.split, found)}


def descendants(pid: int) -> list[int]:
    """Processes started by `pid` and by those; looked up at once, for what is to be killed does not wait."""
    known, found = parents(), [pid]
    for each in found:
        found += [child for child, parent in known.items() if parent == each]
    return found[1:]


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL a process and everything that it started: what a machine that goes down does."""
    for pid in (process.pid, *descendants(process.pid)):
        with contextlib.suppress(ProcessLookupError):  # ended with its parent
            os.kill(pid, signal.SIGKILL)
    process.wait()


def stage_children(pid: int) -> list[int]:
    """The processes that compute: the children of the fork server that `pid` started."""
    known = parents()
    return [child for child, parent in known.items() if known.get(parent) == pid]


def kill_at_work(pid: int, receipts: Path) -> set[str]:
    """SIGKILL the one process that computes for `pid`, in the middle of a shard: `pid` is stopped meanwhile, so that it
    neither hands out another shard nor hears of the end of this one. Returns the shards that were finished by then."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        computing, finished = stage_children(pid), _shards(receipts)
        before = [cpu_s(each) for each in computing]
        time.sleep(0.2)
        for each in computing:
            os.kill(each, signal.SIGSTOP)
        busy = [cpu_s(each) - then >= 0.03 for each, then in zip(computing, before)]
        killed = busy == [True] and _shards(receipts) == finished
        for each in computing:
            os.kill(each, signal.SIGKILL if killed else signal.SIGCONT)
        os.kill(pid, signal.SIGCONT)
        if killed:
            return finished
        time.sleep(0.05)


def _shards(receipts: Path) -> set[str]:
    """Names of the task runs of finished shards, as "score 7"."""
    return {file.stem.replace("-", " ") for file in receipts.glob("*.json")}


def cpu_s(pid: int) -> float:
    """Seconds of a core that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
