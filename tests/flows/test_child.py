"""A child process: what it raises is raised here, a dead one is told, and no answer reaches the wrong call."""

import multiprocessing.util
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from flows.child import Child, ChildEnded, ChildFailed
from pipeline.config import load_config
from storage.errors import UserError
from tests.flows.processes import wait_for
from tests.tiny import make_tiny


def quiet(what, done, total):
    pass


@pytest.fixture(scope="module")
def child():
    with Child() as child:
        yield child


def test_a_users_error_of_the_child_is_a_users_error_here(child, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        child.call("plan", quiet, store=str(tmp_path / "absent"), run="a", number=0)


def test_another_error_of_the_child_is_one_line_and_its_traceback_is_kept(child):
    with pytest.raises(ChildFailed, match="^KeyError: 'no such job'$") as caught:
        child.call("no such job", quiet)
    assert "Traceback" in caught.value.child_traceback


@pytest.mark.parametrize("pause_s", [0, 0.001, 0.2])
def test_a_child_killed_between_calls_is_told_or_started_again(child, tmp_path, pause_s):
    for _ in range(5):
        with pytest.raises(UserError):
            child.call("plan", quiet, store=str(tmp_path / "absent"), run="a", number=0)
        os.kill(child._process.pid, signal.SIGKILL)
        time.sleep(pause_s)
        with pytest.raises((UserError, ChildFailed)):
            child.call("plan", quiet, store=str(tmp_path / "absent"), run="a", number=0)


def test_an_answer_that_nobody_awaited_never_reaches_the_next_call(child, tmp_path):
    def interrupt(what, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child.call("start", interrupt, config={})
    with pytest.raises(UserError, match="does not exist"):
        child.call("plan", quiet, store=str(tmp_path / "absent"), run="a", number=0)


def test_a_callback_that_cannot_write_fails_the_call_with_its_own_error(child, tmp_path):
    def broken_pipe(what, done, total):
        raise BrokenPipeError("the terminal is gone")

    with pytest.raises(BrokenPipeError, match="the terminal is gone"):
        child.call("start", broken_pipe, config=load_config(make_tiny(tmp_path)).model_dump(mode="json"))
    assert not child.alive, "the answer must not reach the next call"


def test_a_child_that_was_killed_from_here_is_never_started_again(tmp_path):
    config = load_config(make_tiny(tmp_path)).model_dump(mode="json")
    failed = []

    def begin():
        with pytest.raises(ChildEnded, match="start: its process was ended") as caught:
            child.call("start", at_work, config=config)
        failed.append(caught.value)

    with Child() as child:
        child.call("rest", quiet)
        begun = threading.Event()
        at_work = lambda what, done, total: begun.set()  # noqa: E731
        thread = threading.Thread(target=begin)
        thread.start()
        assert begun.wait(30)
        child.kill()
        thread.join(10)
        assert failed and not child.alive
        with pytest.raises(ChildEnded, match="no other one is started"):
            child.call("rest", quiet)
        assert not child.alive


def test_a_child_that_is_killed_while_it_is_being_started_does_not_live(tmp_path):
    for pause_s in (0, 0.001, 0.01, 0.05, 0.1):
        with Child() as child:
            killer = threading.Timer(pause_s, child.kill)
            killer.start()
            with pytest.raises(ChildEnded):
                while True:
                    child.call("rest", quiet)
            killer.join()
            wait_for(lambda: not child.alive, 10)


@pytest.mark.skipif(hasattr(multiprocessing.util, "_SUN_PATH_MAX"), reason="this Python goes to /tmp by itself")
def test_a_temporary_folder_with_too_long_a_name_is_one_line(tmp_path):
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    done = subprocess.run([sys.executable, "-m", "flows.cli", "start", make_tiny(tmp_path)], text=True,
                          capture_output=True, env={**os.environ, "TMPDIR": str(folder)})
    assert done.returncode == 2, done.stderr
    assert f"opd: the temporary folder {folder} has too long a name" in done.stderr.splitlines()[-1]
