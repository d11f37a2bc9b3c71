"""The parent's end of grading_child.py: it asks, waits no longer than the timeout, kills, and starts anew."""

import json
import os
import select
import subprocess
import sys
import time

from storage.errors import OpdError, UserError

START_S = 120.0
"""Seconds that the child may take to import math-verify; 1 to 2 on an idle machine."""
_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
"""Environment of the child: no tokens, no settings."""


class GradingProcess:
    """One child, started at the first question and again after it was killed or died. For one thread."""

    def __init__(self, timeout_s: float):
        self.timeout_s = timeout_s
        self.versions: dict[str, str] = {}
        self._child: subprocess.Popen | None = None
        self._rest = b""

    def ask(self, reference: str, answer: str) -> str:
        """What the child found, "timeout", or "died". What a child dies of may come from earlier questions: a verdict
        is only that of a new one."""
        is_new = self._ensure_started()
        found = self._ask_once(reference, answer)
        if found == "died" and not is_new:
            self._ensure_started()
            found = self._ask_once(reference, answer)
        return found

    def close(self) -> None:
        """Kill the child, whatever it is doing."""
        if self._child is not None:
            self._child.kill()
            for pipe in (self._child.stdin, self._child.stdout):
                pipe.close()
            self._child.wait()
        self._child, self._rest = None, b""

    def _ask_once(self, reference: str, answer: str) -> str:
        request = {"reference": reference, "answer": answer, "timeout_s": self.timeout_s}
        try:
            os.write(self._child.stdin.fileno(), json.dumps(request).encode() + b"\n")
            found = self._receive(self.timeout_s)
        except (OSError, EOFError):
            self.close()
            return "died"
        except BaseException:  # Ctrl-C: its answer must not reach the next question
            self.close()
            raise
        if found is None:
            self.close()
            return "timeout"
        return found["found"]

    def _ensure_started(self) -> bool:
        """Whether a child had to be started. Raises UserError if it cannot import math-verify."""
        if self._child is not None and self._child.poll() is None:
            return False
        self.close()
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", "pipeline.evaluate.grading_child", str(os.getpid())], bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**environment, "PYTHONPATH": path, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"})
        try:
            found = self._receive(START_S)
        except EOFError:
            found = None
        if found is None or "missing" in found:
            self.close()
            raise not_installed(found["missing"]) if found else OpdError(
                "the process that compares answers did not start: run the same command again")
        self.versions = found["ready"]
        return True

    def _receive(self, seconds: float) -> dict | None:
        """One line of the child, None if there is none in time. Raises EOFError where the child has died."""
        deadline, pipe = time.monotonic() + seconds, self._child.stdout.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return None
            block = os.read(pipe, 65536)
            if not block:
                raise EOFError
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)


def not_installed(why: str) -> UserError:
    return UserError(f"answers are compared with math-verify 0.9, which cannot be used here ({' '.join(why.split())}): "
                     "pip install 'math-verify>=0.9,<0.10'")
