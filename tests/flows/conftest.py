"""One real Prefect server on loopback for the session; its first start in a fresh home takes 15 s."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class PrefectServer:
    """A running server and the environment that talks to it."""

    url: str
    environment: dict

    def call(self, path: str, body: dict | None = None):
        """POST `body` (GET without one) to the API; returns the JSON."""
        import json

        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")


@pytest.fixture(scope="session")
def prefect(tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")), "PREFECT_API_URL": url,
                   "PYTHONPATH": str(ROOT), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    server = PrefectServer(url, environment)
    try:
        _wait_until_healthy(server, process)
        yield server
    finally:  # the server starts children of its own: end the whole group
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_healthy(server: PrefectServer, process: subprocess.Popen) -> None:
    for _ in range(600):
        assert process.poll() is None, "the Prefect server ended while starting"
        try:
            server.call("/health")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("the Prefect server did not start within 60 s")
