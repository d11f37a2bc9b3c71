"""Processes that race and processes that are killed, for test_races.py and test_faults.py.

    python forks.py race STORE WORKERS RACES     run=race<i>: WORKERS forks put the same key, then finish the same
                                                 shard, each with other bytes; each reports to race<i>-<worker>.json
    python forks.py kill FOLDER                  FOLDER/<n>: a writer killed ahead of its n-th I/O call, for every n

A program of its own, so that every fork begins with the imports loaded and without threads.
"""

import json
import os
import signal
import sys
from pathlib import Path

from small_store import STAGE_TABLES, make_plan, make_run, play_round, play_shard, table

from storage import codec
from storage.disk import Disk, set_disk
from storage.objects import LocalStore, open_store
from storage.rounds import Round

CHANGES = ("create", "write", "fsync", "link", "unlink", "mkdir")
"""Calls that change or sync anything: between two of them, all kills and failures are alike."""


class KillAt(Disk):
    """SIGKILL ahead of the n-th call that changes anything."""

    def __init__(self, n: int):
        self.left = n

    def before(self, call, path):
        self.left -= call in CHANGES
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class LoggedStore(LocalStore):
    """Notes every key whose put has returned, in a file beside the store."""

    def put_if_absent(self, key, data):
        won = super().put_if_absent(key, data)
        with open(self.root.parent / "returned.log", "a") as log:
            log.write(key + "\n")
        return won


def race(root: str, workers: int, races: int) -> None:
    store = open_store(root, create=True)
    for number in range(races):
        run = f"race{number}"
        make_run(store, run, Path(root).parent / "base")
        make_plan(Round(store, run, 0), 1)
        start, go = os.pipe()
        children = []
        for worker in range(workers):
            children.append(os.fork())
            if children[-1] == 0:
                os.close(go)
                os.read(start, 1)
                won = store.put_if_absent(f"run={run}/tight", bytes([worker]))
                receipt = play_shard(Round(store, run, 0), "prompts", 0, Path(root).parent, variant=worker)
                report = {"won": won, "counts": receipt.file.sha256}
                (Path(root).parent / f"{run}-{worker}.json").write_text(json.dumps(report))
                os._exit(0)
        os.close(start)
        os.close(go)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * workers


def kill(folder: str) -> None:
    n, status = 0, -1
    while status != 0:
        n += 1
        child = os.fork()
        if child == 0:
            set_disk(KillAt(n))
            write(Path(folder) / str(n), LoggedStore)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status


def write(folder: Path, kind=LocalStore) -> None:
    """A store, a run, a round: everything that writes. Called again, it resumes."""
    store = kind(open_store(folder / "store", create=True).root)
    make_run(store, "r", folder.parent / "models" / "base")
    play_round(store, "r", 0, folder.parent / "models", shards=1)


def warm_up() -> None:
    """Pay for first uses once, ahead of the forks; writing starts no threads."""
    for stage in STAGE_TABLES:
        codec.encode(table(stage))


if __name__ == "__main__":
    warm_up()
    command, *arguments = sys.argv[1:]
    if command == "race":
        race(arguments[0], int(arguments[1]), int(arguments[2]))
    else:
        kill(arguments[0])
