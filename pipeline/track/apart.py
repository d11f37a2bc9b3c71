"""A tracker in a process of its own, which is handed numbers and killed when it hangs.

    parent  {"tracker": ..., "run": ...}        child  {"rounds": 2}       how many it holds
            {"number": 2, "points": ...}               {"rounds": 3}       ... one line per round
            end of file                                {"rounds": 3}       everything is there

Trackers are other people's threads, exit hooks, prints, analytics and global state. A process keeps all of it away
from the round's: its environment is set before the library is imported, its prints go nowhere, it has no terminal to
ask for a password on, and SIGALRM ends it TIMEOUT_S after a call that does not return, whoever else is alive. That
costs .2 s (TensorBoard) to 2.3 s (MLflow on SQLite) a round.
"""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter

from pipeline.config.trackers import Tracker
from pipeline.track.interface import KINDS, Points, Run, load_backend
from storage.errors import UserError
from storage.text import printable

TIMEOUT_S = 120
"""Of one call: opening, one round, closing."""

_AGAIN = "the next round, or `opd track`, tries again"
_START = "import sys; sys.path[:] = sys.argv[1:]; from pipeline.track.apart import main; main()"
_SECRET_NAME = re.compile(r"(KEY|KEY_ID|TOKEN|PASSWORD|SECRET)$", re.IGNORECASE)
_USER_OF_URL = re.compile(r"://(?:[^/\s]*:[^@\s]*|[^/@\s]+)@")
_MAX_LINE = 300


class TrackerFailed(Exception):
    """One line about a tracker that did not do its work; never reaches the player."""


def feed_apart(tracker: Tracker, run: Run, points_of: Callable[[int], Points], number: int,
               timeout_s: int = TIMEOUT_S) -> str:
    """Bring the tracker to hold rounds 0 to `number`. Returns "ok", or one line about why it does not.

    Raises RuntimeError for a bug of ours in the tracker's module, and whatever `points_of` raises.
    """
    begin = {"tracker": tracker.model_dump(), "run": dataclasses.asdict(run), "timeout_s": timeout_s}
    try:
        with _start(tracker) as process:
            try:
                held = _ask(process, begin)
                while held <= number:
                    held = _ask(process, {"number": held, "points": points_of(held)})
                process.stdin.close()
                _answer(process)
            except BaseException:  # Ctrl-C, a damaged store, or a tracker that died already
                process.kill()
                raise
    except (TrackerFailed, BrokenPipeError) as failure:
        code = process.returncode
        if code == -signal.SIGALRM:
            return f"did not answer within {timeout_s} s; {_AGAIN}"
        return str(failure) if isinstance(failure, TrackerFailed) else f"its process died (exit code {code}); {_AGAIN}"
    return "ok"


def _start(tracker: Tracker) -> subprocess.Popen:
    kind = KINDS[tracker.type]
    environment = kind.defaults | os.environ | kind.environment
    return subprocess.Popen(
        [sys.executable, "-c", _START, *sys.path], text=True, start_new_session=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={name: value for name, value in environment.items() if value is not None})


def _ask(process: subprocess.Popen, message: dict) -> int:
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()
    return _answer(process)


def _answer(process: subprocess.Popen) -> int:
    line = process.stdout.readline()
    if not line:
        process.wait()
        raise BrokenPipeError
    answer = json.loads(line)
    if "bug" in answer:
        raise RuntimeError(f"a bug in a tracker's module: {answer['bug']}")
    if "problem" in answer:
        raise TrackerFailed(answer["problem"])
    return answer["rounds"]


# --- the child ---


def main() -> None:
    """Serve one parent over stdin and stdout, of which the tracker sees neither."""
    messages, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    for answer in _serve(messages):
        print(json.dumps(answer), file=answers, flush=True)


def _serve(messages):
    try:
        begin = json.loads(next(messages))
        timeout_s = begin["timeout_s"]
        signal.alarm(timeout_s)
        backend = load_backend(TypeAdapter(Tracker).validate_python(begin["tracker"]))
        held = backend.open(Run(**begin["run"]))
        signal.alarm(0)
        yield {"rounds": held}
        for message in map(json.loads, messages):
            signal.alarm(timeout_s)
            backend.log(message["number"], message["points"])
            signal.alarm(0)
            held = message["number"] + 1
            yield {"rounds": held}
        signal.alarm(timeout_s)  # for the exit hooks, too
        backend.close()
        yield {"rounds": held}
    except Exception as error:  # told to the parent, which decides
        yield {"problem": one_line(error)} if is_trackers_own(error) else {"bug": traceback.format_exc()}


def is_trackers_own(error: Exception) -> bool:
    """Whether the tracker failed, and not our lines: a library raises what it likes, of its own or anybody's types."""
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, UserError | OSError) or Path(innermost).parent != Path(__file__).parent


def one_line(error: Exception) -> str:
    """The error for people, on one line, without the secrets of the environment and of addresses."""
    text = " ".join(str(error).split())
    named = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
    return printable(without_secrets(named))[:_MAX_LINE]


def without_secrets(text: str) -> str:
    """`text` without what the environment calls a key, token, password or secret, and without users of addresses."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= 8:
            text = text.replace(value, "***")
    return _USER_OF_URL.sub("://***@", text)
