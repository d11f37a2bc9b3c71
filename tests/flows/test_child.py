"""A child process: what it raises is raised here, a dead one is told, and no answer reaches the wrong call."""

import os
import signal
import time

import pytest

from flows.child import Child, ChildFailed
from storage.errors import UserError


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
