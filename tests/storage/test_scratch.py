"""Temp folders of a process: gone when it ends well, removed by the next one when it did not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage import catalog, scratch

ROOT = Path(__file__).parents[2]
END = {"well": "", "os._exit": "os._exit(0)", "SIGKILL": "os.kill(os.getpid(), 9)"}


def start(temp: Path, then: str, **options) -> subprocess.Popen:
    """A process that downloads something, says so, and ends as `then` says."""
    code = ("import os, sys; from storage.scratch import scratch_folder; folder = scratch_folder('s3', os.getpid())\n"
            f"(folder / 'a').mkdir(); (folder / 'a' / 'weights').write_text('x'); print(folder, flush=True)\n{then}")
    environment = {**os.environ, "TMPDIR": str(temp), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, **options)


def downloads(temp: Path) -> list[str]:
    return sorted(path.name for path in temp.iterdir())


@pytest.fixture(autouse=True)
def temp(tmp_path, monkeypatch):
    """The temp folder of this process and of those it starts; this one forgets what it made elsewhere."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scratch._made.clear()
    yield tmp_path
    scratch._made.clear()


@pytest.mark.parametrize("end", END)
def test_what_a_process_left_is_removed_at_its_end_or_by_the_next_process(temp, end):
    start(temp, END[end]).wait()
    assert len(downloads(temp)) == (0 if end == "well" else 1)
    start(temp, "").wait()
    assert downloads(temp) == []


def test_folders_of_running_processes_and_of_other_kinds_are_left_alone(temp):
    running = start(temp, "sys.stdin.read()", stdin=subprocess.PIPE)
    folder = Path(running.stdout.readline().strip())
    (temp / "opd-checkpoint-1").mkdir()
    (temp / "opd-s3-link").symlink_to(temp / "opd-checkpoint-1")
    (temp / "opd-s3-file").write_text("x")
    mine = scratch.scratch_folder("s3", os.getpid())
    assert downloads(temp) == sorted([folder.name, mine.name, "opd-checkpoint-1", "opd-s3-file", "opd-s3-link"])
    assert (folder / "a" / "weights").is_file() and scratch.scratch_folder("s3", os.getpid()) == mine
    running.kill()
    running.wait()


def test_a_fork_has_a_folder_of_its_own_and_leaves_its_parents(temp):
    then = ("if not os.fork():\n    other = scratch_folder('s3', os.getpid())\n    sys.exit(other == folder)\n"
            "assert os.wait()[1] == 0 and (folder / 'a' / 'weights').is_file()")
    assert start(temp, then).wait() == 0 and downloads(temp) == []


def test_a_folder_is_emptied_but_for_what_is_kept(temp):
    scratch.empty("s3")
    assert downloads(temp) == [], "one that was not there is not made"
    mine = scratch.scratch_folder("s3", os.getpid())
    kept, other, file = mine / "run=a" / "checkpoint=1", mine / "run=a" / "checkpoint=0", mine / "run=a" / "run.json"
    for folder in (kept, other):
        folder.mkdir(parents=True)
        (folder / "weights").write_text("x")
    file.write_text("{}")
    scratch.empty("s3", keep=kept)
    assert [path for path in mine.rglob("*") if path.is_file()] == [kept / "weights"] and not other.exists()
    scratch.empty("s3")
    assert mine.is_dir() and not list(mine.iterdir())


def test_duckdb_spills_into_a_folder_of_the_connection_that_goes_with_it(temp):
    connection = catalog.open_connection()
    [folder] = (temp / downloads(temp)[0]).iterdir()
    assert connection.execute("SELECT current_setting('temp_directory')").fetchall() == [(str(folder),)]
    other = catalog.open_connection()
    assert len(list(folder.parent.iterdir())) == 2
    connection.close()
    del connection
    assert not folder.exists() and len(list(folder.parent.iterdir())) == 1
    other.close()
