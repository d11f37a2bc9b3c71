"""A real Prefect server on loopback, in a folder of its own: started, asked, killed, and started again."""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.flows.processes import kill_all

ROOT = Path(__file__).parents[2]
BUSY = 503
"""What a server answers whose database is locked at the moment; Prefect's own clients ask again, too."""
TAKEN = 423
"""What it answers who asks for a slot of a limit that has none."""
PASSWORD = "opd:not-a-secret"
ORIGINS = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"


def hardened() -> dict[str, str]:
    """The settings in examples/prefect_server.env, with a password; the origin holds the port, and is set below."""
    lines = (ROOT / "examples/prefect_server.env").read_text().splitlines()
    shipped = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    del shipped[ORIGINS]
    return {**shipped, "PREFECT_SERVER_API_AUTH_STRING": PASSWORD, "PREFECT_API_AUTH_STRING": PASSWORD}


class PrefectServer:
    """A server and the environment that talks to it. Ending it leaves its database, so it can be started again."""

    def __init__(self, home: Path, settings: dict[str, str]):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_API_URL": self.url,
                            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "results"), "PYTHONPATH": str(ROOT),
                            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_WORKER_QUERY_SECONDS": "1",
                            "PREFECT_WORKER_PREFETCH_SECONDS": "1", "PWD": str(ROOT),
                            ORIGINS: f"http://127.0.0.1:{self.port}",
                            "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "1", **settings}
        self.process = None
        self._token = "", 0.0

    def start(self) -> None:
        """Start it and wait until it answers: 7 s with a database, 12 s without."""
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, start_new_session=True)
        for _ in range(600):
            assert self.process.poll() is None, "the Prefect server ended while starting"
            with contextlib.suppress(OSError):  # not there yet, or too busy to answer in time
                self.call("/health")
                return
            time.sleep(0.1)
        raise AssertionError("the Prefect server did not start within 60 s")

    def kill(self) -> None:
        """SIGKILL it with the processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def call(self, path: str, body: dict | None = None):
        """POST `body` (GET without one) to the API; returns the JSON."""
        headers = {"Content-Type": "application/json"}
        if password := self.environment.get("PREFECT_API_AUTH_STRING"):
            headers["Authorization"] = "Basic " + base64.b64encode(password.encode()).decode()
        if body is not None and "PREFECT_SERVER_CSRF_PROTECTION_ENABLED" in self.environment:
            headers |= {"Prefect-Csrf-Token": self._csrf_token(), "Prefect-Csrf-Client": "tests"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        for left in reversed(range(20)):
            try:
                with urllib.request.urlopen(request, timeout=100) as answer:
                    return json.loads(answer.read() or "null")
            except urllib.error.HTTPError as error:
                if error.code != BUSY or not left:
                    raise
                time.sleep(0.5)

    def _csrf_token(self) -> str:
        """Asked for once an hour, as by Prefect's clients: each is a row in the server's database."""
        token, end = self._token
        if time.monotonic() > end:
            token, end = self.call("/csrf-token?client=tests")["token"], time.monotonic() + 1800
            self._token = token, end
        return token

    def opd(self, *arguments, **environment: str) -> subprocess.CompletedProcess:
        """Run `opd` against this server."""
        return subprocess.run(self.command(*arguments), env={**self.environment, **environment}, text=True,
                              capture_output=True, timeout=200)

    def begin(self, *arguments, **environment: str) -> subprocess.Popen:
        """Start `opd` against this server."""
        return subprocess.Popen(self.command(*arguments), env={**self.environment, **environment}, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    @staticmethod
    def command(*arguments) -> list[str]:
        return [sys.executable, "-m", "flows.cli", *map(str, arguments)]

    def flow_runs(self, name: str) -> list[dict]:
        """Flow runs of this name, the first first."""
        return self.call("/flow_runs/filter", {"flow_runs": {"name": {"any_": [name]}}, "sort": "START_TIME_ASC"})

    def logs(self, flow_run: str) -> str:
        """What a flow run has logged."""
        found = self.call("/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run]}}})
        return "\n".join(each["message"] for each in found)

    def task_runs(self, flow_run: str, **filters) -> list[dict]:
        """Task runs of the flow run with this id."""
        return self.call("/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}, "task_runs": filters})

    def schedule(self, deployment: str, parameters: dict, after_s: float = 0.0) -> str:
        """A scheduled flow run of a deployment, `flow/name`; returns its id."""
        when = (datetime.now(UTC) + timedelta(seconds=after_s)).isoformat()
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": when}}
        found = self.call(f"/deployments/name/{deployment}")["id"]
        return self.call(f"/deployments/{found}/create_flow_run", {"parameters": parameters, "state": state})["id"]

    def state(self, flow_run: str) -> tuple[str, str]:
        """(type, name) of a flow run's state."""
        found = self.call(f"/flow_runs/{flow_run}")
        return found["state_type"], found["state_name"]

    def taken(self) -> set[str]:
        """Names of the limits of which a slot is taken."""
        found = self.call("/v2/concurrency_limits/filter", {"limit": 200})
        return {each["name"] for each in found if each["active_slots"]}

    @contextlib.contextmanager
    def held(self, limit: str) -> Iterator[None]:
        """Hold the one slot of a limit, once it is free: a flow run that was killed may keep it for 75 s."""
        end = time.monotonic() + 100
        while (lease := self._lease(limit)) is None:
            assert time.monotonic() < end, f"{limit} stays taken"
            time.sleep(1)
        try:
            yield
        finally:
            self.call("/v2/concurrency_limits/decrement-with-lease", {"lease_id": lease})

    def _lease(self, limit: str) -> str | None:
        wanted = {"names": [limit], "slots": 1, "mode": "concurrency", "lease_duration": 300}
        try:
            return self.call("/v2/concurrency_limits/increment-with-lease", wanted)["lease_id"]
        except urllib.error.HTTPError as error:
            if error.code != TAKEN:
                raise
            return None

    def ended(self, flow_run: str) -> dict | None:
        """The flow run once its state is a last one."""
        found = self.call(f"/flow_runs/{flow_run}")
        return found if found["state_type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED") else None

    @contextlib.contextmanager
    def worker(self, pool: str, log: Path, *options: str, **environment: str) -> Iterator[subprocess.Popen]:
        """A worker of a process pool; killed with its flow runs at the end."""
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process", *options]
        with log.open("ab") as file:
            process = subprocess.Popen(command, env={**self.environment, **environment}, stdout=file, stderr=file,
                                       start_new_session=True)
        try:
            yield process
        finally:
            kill_all(process)

    def prefect(self, *arguments) -> subprocess.CompletedProcess:
        """Run `prefect` against this server; raises if it fails."""
        return subprocess.run([sys.executable, "-m", "prefect", *arguments], env=self.environment, text=True, cwd=ROOT,
                              capture_output=True, check=True, timeout=200)


@contextlib.contextmanager
def prefect_server(home: Path, **settings: str) -> Iterator[PrefectServer]:
    """A server with these settings, killed at the end."""
    server = PrefectServer(home, settings)
    try:
        server.start()
        yield server
    finally:  # the server starts children of its own: the whole group ends
        server.kill()
