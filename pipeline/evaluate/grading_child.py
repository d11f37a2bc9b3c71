"""The process in which math-verify works: one JSON request per line in, one JSON answer per line out.

    python -P -B -m pipeline.evaluate.grading_child <process id of the parent>

    {"ready": {"math-verify": "0.9.0", ...}}                                      or {"missing": "No module named ..."}
    {"reference": "3x+1", "answer": "1+3x", "timeout_s": 5.0}  ->  {"found": "equal"}

It has 2 GiB of address space, no file it may write, and an alarm for each request that the kernel keeps: it dies a
second after the timeout whatever it is computing. It leaves when the parent is gone. An audit hook, which Python cannot
take off again, refuses what grading has no use for: programs, sockets, files to write, foreign libraries, `eval` by
sympy. What the model wrote is no code for any of it (reader.py); this is for what nobody thought of.
"""

import json
import logging
import os
import resource
import select
import signal
import sys
from importlib.metadata import version

MEMORY = 2 << 30
"""Bytes of address space."""
PACKAGES = ("math-verify", "latex2sympy2_extended", "sympy", "antlr4-python3-runtime")
_WARMING = [("3x+1", "1+3x"), ("1,-2", "-2,1"), ("(2,\\infty)", "x>2"), ("x=2", "2x=4"),
            ("\\frac{x^{2}-1}{x-1}", "x+1"), ("(0,9)\\cup(9,36)", "(9,36)\\cup(0,9)"),
            ("\\begin{pmatrix}1\\\\2\\end{pmatrix}",) * 2, ("\\sin^{2}x+\\cos^{2}x", "1"),
            ("\\sqrt{3}/3", "1/\\sqrt{3}"), ("\\log 100", "\\ln e")]
"""Pairs that make sympy import what it imports late."""
_REFUSED = ("os.", "subprocess.", "socket.", "ctypes.", "shutil.", "pty.", "tempfile.", "urllib.", "http.", "ftplib.",
            "smtplib.", "sqlite3.", "webbrowser.", "syslog.")
_ALLOWED = {"os.listdir", "os.scandir"}
"""What importing a module asks for."""


def main() -> None:
    parent = int(sys.argv[1])
    out = os.fdopen(os.dup(1), "w")
    for stream in (1, 2):  # what libraries print is nobody's answer
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    for kind, limit in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        _limit(kind, limit)
    try:
        from pipeline.evaluate.same_value import same_value

        for pair in _WARMING:
            same_value(*pair)
        found = {"ready": {name: version(name) for name in PACKAGES}}
    except ImportError as error:
        found = {"missing": str(error)}
    _send(out, found)
    _fence()
    for line in _lines(parent):
        request = json.loads(line)
        _limit_time(request["timeout_s"] + 1)
        found = same_value(request["reference"], request["answer"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(out, {"found": found})


def _send(out, content: dict) -> None:
    out.write(json.dumps(content) + "\n")
    out.flush()


def _lines(parent: int):
    """Lines from stdin, until it closes or the parent has died (another process may hold its end of the pipe)."""
    rest = b""
    while True:
        while not select.select([0], [], [], 1.0)[0]:
            if os.getppid() != parent:
                return
        block = os.read(0, 65536)
        if not block:
            return
        *lines, rest = (rest + block).split(b"\n")
        yield from lines


def _limit_time(seconds: float) -> None:
    """Signals that nobody catches: the kernel ends the process, also where Python is busy in one long operation."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + seconds) + 2)


def _limit(kind: int, limit: int) -> None:
    _, most = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def _fence() -> None:
    from sympy.parsing import sympy_parser

    def refuse(*_):
        raise PermissionError("no text becomes code here")

    def watch(event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event.startswith(_REFUSED) and event not in _ALLOWED:
            refuse()

    sympy_parser.eval_expr = refuse
    sys.addaudithook(watch)


if __name__ == "__main__":
    main()
