"""Work in a child process that can be watched and killed.

The child is forked from a server that has torch and transformers imported and has never touched a device: 0.1 s
instead of 4 s per stage, and GPU memory comes back when the stage ends. One child serves the shards of one stage, so
models are loaded once per stage. What it may do is listed in flows/jobs.py.

    with Child() as child:
        receipt = child.call("shard", on_progress, store=url, run="a", number=3, stage="score", shard=7)

Messages are JSON. The child leaves when this process does, however that ends: it watches the pipe between them. It
leads a process group, and what it started (an engine, ranks of a trainer) ends with it.
"""

import contextlib
import json
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection

from storage.errors import ConfigError, IntegrityError, OpdError, UserError

FAMILIES = {"config": ConfigError, "user": UserError, "integrity": IntegrityError, "product": OpdError}
"""How an exception of the child is raised again here: the first class that fits."""

OnProgress = Callable[[str, int, int], None]


class ChildFailed(OpdError, RuntimeError):
    """The child died, or failed with something that is no error of ours; a retry may help."""


class Child:
    """One child process, started at the first call, and again if it died."""

    def __init__(self, environment: Mapping[str, str] | None = None):
        """`environment` is added to the child's own, which is the fork server's, before it touches a device."""
        self._environment = dict(environment or {})
        self._process = None
        self._pipe: Connection | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def call(self, job: str, on_progress: OnProgress, **arguments) -> dict:
        """Do the job in the child and return its dict. Raises what the job raised, ChildFailed if the child died."""
        with self._lock:
            self._ensure_started()
            try:
                _send(self._pipe, job, arguments)
                kind, content = self._await(on_progress)
            except (EOFError, OSError):  # killed, or out of memory
                raise self._death(job, arguments) from None
            except BaseException:  # Ctrl-C, or a progress callback that failed: its answer must not reach the next call
                self.close()
                raise
        if kind == "done":
            return content
        family, message, trace = content
        error = FAMILIES.get(family, ChildFailed)(message)
        error.child_traceback = trace
        raise error

    @property
    def alive(self) -> bool:
        """Whether there is a process that remembers earlier calls."""
        return self._process is not None and self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL the child and what it started; a call that another thread awaits fails. It may be started again."""
        process = self._process
        if process is not None and process.is_alive():
            _kill(os.kill, process.pid)  # it leads no group yet if it was forked just now
            _kill(os.killpg, process.pid)

    def close(self) -> None:
        """End the child, whatever it is doing, and wait for it."""
        if self._process is None:
            return
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        _kill(os.killpg, self._process.pid)
        self._process = None

    def _ensure_started(self) -> None:
        if self.alive:
            return
        self.close()
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["flows.preload"])
        self._pipe, theirs = server.Pipe()
        process = server.Process(target=_serve, args=(theirs, self._environment))
        process.start()
        self._process = process  # not before: one that Ctrl-C kept from starting cannot be joined
        theirs.close()

    def _await(self, on_progress: OnProgress) -> tuple[str, object]:
        while True:
            kind, content = _receive(self._pipe)
            if kind != "progress":
                return kind, content
            on_progress(*content)

    def _death(self, job: str, arguments: dict) -> ChildFailed:
        self._process.join()
        code = self._process.exitcode
        self.close()
        what = " ".join(str(arguments[key]) for key in ("stage", "shard") if key in arguments) or job
        return ChildFailed(f"{what}: its process died (exit code {code}); what is finished is kept, run the same "
                           "command again")


def _serve(pipe: Connection, environment: dict[str, str]) -> None:
    """The child: answer calls until the other end closes."""
    from flows import jobs

    os.environ.update(environment)
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides

    def progress(what: str, done: int, total: int) -> None:
        _send(pipe, "progress", (what, done, total))

    for job, arguments in _calls(pipe):
        try:
            _send(pipe, "done", jobs.JOBS[job](progress, **arguments))
        except Exception as error:  # everything is told to the parent, which decides
            _send(pipe, "error", (_family(error), _line(error), traceback.format_exc()))


def _kill(kill: Callable[[int, int], None], pid: int) -> None:
    """SIGKILL a process, or what is left of a group."""
    with contextlib.suppress(ProcessLookupError):
        kill(pid, signal.SIGKILL)


def _send(pipe: Connection, kind: str, content) -> None:
    pipe.send_bytes(json.dumps([kind, content]).encode())


def _receive(pipe: Connection):
    return json.loads(pipe.recv_bytes())


def _calls(pipe: Connection):
    """Calls from `pipe`; a thread of its own ends the process and its group at once when the parent is gone."""
    calls = queue.SimpleQueue()

    def read():
        try:
            while True:
                calls.put(_receive(pipe))
        except (EOFError, OSError):
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield calls.get()


def _family(error: Exception) -> str:
    return next((name for name, family in FAMILIES.items() if isinstance(error, family)), "other")


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, OpdError) else f"{type(error).__name__}: {text}"
