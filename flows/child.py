"""Work in a child process that can be watched and killed.

The child is forked from a server that has torch and transformers imported and has never touched a device: 0.1 s
instead of 4 s, and GPU memory comes back when it ends. It remembers what it has loaded from call to call; how long it
lives is decided in flows/team.py. What it may do is listed in flows/jobs.py.

    with Child() as child:
        receipt = child.call("shard", on_progress, store=url, run="a", number=3, stage="score", shard=7)

A job may leave something to be finished, as a score shard its file: the child takes another thread's call meanwhile.
It finishes in order, one thing at a time, and a third call waits until the first is finished.

Messages are JSON. The child leaves when this process does, however that ends: it watches the pipe between them. It
leads a process group, and what it started (an engine, ranks of a trainer) ends with it.
"""

import contextlib
import json
import multiprocessing
import os
import queue
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection

from storage.errors import ConfigError, IntegrityError, OpdError, UserError

FAMILIES = {"config": ConfigError, "user": UserError, "integrity": IntegrityError, "product": OpdError}
"""How an exception of the child is raised again here: the first class that fits."""

ENDING_S = 5
"""A process closes its pipe a little before it has ended."""

OnProgress = Callable[[str, int, int], None]


class ChildFailed(OpdError, RuntimeError):
    """The child died, or failed with something that is no error of ours; a retry may help."""


class ChildEnded(ChildFailed):
    """Somebody here killed the child: its work is to stop, and no retry starts another one."""


class Child:
    """One child process, started at the first call, and again if it died; never again once it was killed from here."""

    def __init__(self, environment: Mapping[str, str] | None = None):
        """`environment` is added to the child's own, which is the fork server's, before it touches a device."""
        self._environment = dict(environment or {})
        self._process = None
        self._pipe: Connection | None = None
        self._behind: Connection | None = None
        """Where the child tells what it has finished beside another call."""
        self._calling, self._finishing = threading.Lock(), threading.Lock()
        """A call takes the second before it lets go of the first: calls end in the order in which they began."""
        self._asking = threading.Lock()
        """Of two threads that ask at once how a process ended, one would be told something else."""
        self._killed = False

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def call(self, job: str, on_progress: OnProgress, on_free: Callable[[], None] = lambda: None, **arguments) -> dict:
        """Do the job in the child and return its dict. Raises what the job raised, ChildFailed if the child died,
        ChildEnded if it was killed from here, now or earlier.

        `on_free` is called once the child can take another call, if the job leaves something to be finished.
        """
        with self._calling:
            process, behind = self._ensure_started(), self._behind
            with self._watched(process, job, arguments):
                _send(self._pipe, job, arguments)
                kind, content = self._await(on_progress)
                if kind == "begun":
                    self._finishing.acquire()
        if kind == "begun":
            try:
                with self._watched(process, job, arguments):
                    on_free()
                    kind, content = _receive(behind)
            finally:
                self._finishing.release()
        if kind == "done":
            return content
        family, message, trace = content
        error = FAMILIES.get(family, ChildFailed)(message)
        error.child_traceback = trace
        raise error

    @property
    def alive(self) -> bool:
        """Whether there is a process that remembers earlier calls."""
        process = self._process
        return process is not None and self._is_alive(process)

    def kill(self) -> None:
        """SIGKILL the child and what it started, for good: a call that another thread awaits fails, and so do later
        ones."""
        self._killed = True  # before `_process` is read; a start reads them in the other order, so that one sees it
        process = self._process
        if process is not None and self._is_alive(process):
            _kill(os.kill, process.pid)  # it leads no group yet if it was forked just now
            _kill(os.killpg, process.pid)

    def close(self) -> None:
        """End the child, whatever it is doing, and wait for it."""
        process, self._process = self._process, None
        if process is not None:
            self._end(process)

    def _end(self, process) -> None:
        if self._is_alive(process):
            _kill(os.kill, process.pid)
        self._bury(process)

    def _bury(self, process) -> None:
        """Wait for a process that is ending, and end what it has started: soon, for its number may become another's."""
        with self._asking:
            process.join()
        _kill(os.killpg, process.pid)
        if self._process is process:
            self._process = None

    def _is_alive(self, process) -> bool:
        with self._asking:
            return process.is_alive()

    def _ensure_started(self):
        """The process, started if there is none that lives."""
        if self._killed:
            raise ChildEnded("its process was ended, and no other one is started")
        process = self._process
        if process is not None and self._is_alive(process):
            return process
        self.close()
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["flows.preload"])
        (self._pipe, theirs), (self._behind, their_behind) = server.Pipe(), server.Pipe()
        process = server.Process(target=_serve, args=(theirs, their_behind, self._environment))
        with _short_enough():
            process.start()
        self._process = process  # not before: one that Ctrl-C kept from starting cannot be joined
        theirs.close()
        their_behind.close()
        if self._killed:
            self.kill()
        return process

    def _await(self, on_progress: OnProgress) -> tuple[str, object]:
        while True:
            kind, content = _receive(self._pipe)
            if kind != "progress":
                return kind, content
            on_progress(*content)

    @contextlib.contextmanager
    def _watched(self, process, job: str, arguments: dict) -> Iterator[None]:
        """A call's dealings with a process: end it if they are broken off, and tell of its death."""
        try:
            yield
        except EOFError:  # killed, or out of memory
            raise self._death(process, job, arguments) from None
        except OSError:  # the same, or a callback's own, such as a terminal that is gone
            with self._asking:
                process.join(ENDING_S)
            if not self._is_alive(process):
                raise self._death(process, job, arguments) from None
            self._break_off(process)
            raise
        except Exception:  # a callback that failed: the answer must not reach the next call
            self._break_off(process)
            raise
        except BaseException:  # Ctrl-C
            self._end(process)
            raise

    def _break_off(self, process) -> None:
        """End a process once the call that is being finished there, if any, has its answer."""
        if self._finishing.acquire(timeout=ENDING_S):
            self._finishing.release()
        self._end(process)

    def _death(self, process, job: str, arguments: dict) -> ChildFailed:
        self._end(process)
        what = " ".join(str(arguments[key]) for key in ("stage", "shard") if key in arguments) or job
        if self._killed:
            return ChildEnded(f"{what}: its process was ended; run the same command again")
        return ChildFailed(f"{what}: its process died (exit code {process.exitcode}); what is finished is kept, run "
                           "the same command again")


def _serve(pipe: Connection, behind: Connection, environment: dict[str, str]) -> None:
    """The child: answer calls until the other end closes."""
    from flows import jobs

    os.environ.update(environment)
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    finishing = ThreadPoolExecutor(1)

    def progress(what: str, done: int, total: int) -> None:
        _send(pipe, "progress", (what, done, total))

    for job, arguments in _calls(pipe):
        finish = _tell(pipe, lambda: jobs.JOBS[job](progress, **arguments))
        if finish:
            finishing.submit(_tell, behind, finish).add_done_callback(_told)
            finish = None  # its tables go with it, before a stage's memory is given back
            _send(pipe, "begun", None)


def _tell(pipe: Connection, work: Callable[[], object]) -> Callable[[], object] | None:
    """Tell the parent what some work returned, or how it failed; what it leaves to be finished is returned."""
    try:
        result = work()
        if callable(result):
            return result
        _send(pipe, "done", result)
    except Exception as error:  # everything is told to the parent, which decides
        _send(pipe, "error", (_family(error), _line(error), traceback.format_exc()))


def _told(finishing: Future) -> None:
    """A thread that could not tell leaves its caller waiting: the process ends, as it would in its main thread."""
    if finishing.exception():
        os.killpg(0, signal.SIGKILL)


@contextlib.contextmanager
def _short_enough() -> Iterator[None]:
    """Raise UserError for a temporary folder in whose name the fork server's socket, of 107 bytes at most, has no
    place."""
    try:
        yield
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        raise UserError(f"the temporary folder {tempfile.gettempdir()} has too long a name for a socket in it: set "
                        "TMPDIR to another one, of 70 characters at most") from None


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
