"""Every command and every query of the README, in its order, in one folder, as a reader would type them.

The quickstart's pair is a tiny one under the real one's mark, so that minutes become seconds; `make` is told that its
environment stands; the Prefect server gets a free port. Nothing else is changed.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pipeline.quickstart import pair
from tests.tiny import byte_tokenizer, save_model

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [line.removeprefix("$ ") for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
            for line in block.splitlines()]
QUERIES = re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)
ITSELF = "make test"

needs_data = pytest.mark.skipif("OPD_DATA_DIR" not in os.environ, reason="OPD_DATA_DIR is not set: it names a folder "
                                                                         "with the public data sets")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An environment and a folder like a fresh clone after `make`: examples, prefect.yaml, `opd` on the path."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("examples", "prefect.yaml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "bin").mkdir()
    (folder / "bin/opd").write_text(f'#!/bin/sh\nexec {sys.executable} -m flows.cli "$@"\n')
    (folder / "bin/opd").chmod(0o755)
    measured = {"student_step": 0, "solved_by_student": 0.0, "solved_by_teacher": 0.0}
    for seed, name in enumerate((pair.STUDENT, pair.TEACHER)):
        model = save_model(folder / "opd-models" / name, byte_tokenizer(), seed=seed, sharpness=1 + seed / 2)
        mark = {"key": pair._key(pair.Recipe(), 0), "measured": measured}
        (model / pair.MARKER).write_text(json.dumps(mark))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(folder / "prefect"), "COLUMNS": "100",
                   "PATH": f"{folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
                   "PREFECT_SERVER_API_PORT": port}
    environment.pop("PREFECT_API_URL", None)
    yield folder, environment, port
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a server that a failed test left behind
        os.kill(int((folder / "prefect/server.pid").read_text()), signal.SIGTERM)


def bash(command: str, folder: Path, environment: dict) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, text=True, capture_output=True,
                          timeout=300)


def serve(command: str, folder: Path, environment: dict) -> None:
    """`opd serve` until it says how to stop it, then Ctrl-C."""
    process = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=folder, env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("stop: Ctrl-C"):
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in rest, "".join(said) + rest


def wait_for_server(url: str) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return
        time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")


def test_a_command_is_a_line_of_its_own_and_there_are_some():
    assert len(COMMANDS) > 20 and ITSELF in (command.split("  ")[0] for command in COMMANDS)
    assert all(command and not command.endswith("\\") for command in COMMANDS)
    assert "pytest tests" in subprocess.run(["make", "-n", "-o", ".venv/installed", "test"], cwd=ROOT, text=True,
                                            capture_output=True, check=True).stdout


@needs_data
@pytest.mark.timeout(900)
def test_every_command_of_the_readme_does_what_it_says(place):
    folder, environment, port = place
    for line in COMMANDS:
        command = re.sub(r"\s{2,}# .*", "", line).replace("4200", port)
        if command == ITSELF:
            continue
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            environment[name] = value
            continue
        if command.startswith("opd serve "):
            serve(command, folder, environment)
            continue
        real = command.replace("make ", f"make -f {ROOT}/Makefile -o .venv/installed BIN={folder}/bin ")
        done = bash(real, folder, environment)
        assert done.returncode == 0 and "Traceback" not in done.stderr, f"{line}\n{done.stdout}\n{done.stderr}"
        if command == "make quickstart":
            suggested = [each.strip() for each in done.stdout.splitlines() if each.startswith("  opd sql ")]
            assert len(suggested) == 3
            for query in suggested:
                asked = bash(f"{query} --json", folder, environment)
                assert asked.returncode == 0 and json.loads(asked.stdout), f"{query}\n{asked.stderr}"
        if command.startswith("prefect server start"):
            wait_for_server(environment["PREFECT_API_URL"])
    left = {path.name for path in folder.iterdir()}
    assert {"opd-store", "opd-reports", "my.toml", "answers.parquet", "steps.csv", "opd.duckdb", "curves"} <= left
    reports = {path.name for path in (folder / "opd-reports").iterdir()}
    swept = {f"gsm8k.r1.sweep.{kind}" for kind in ("html", "png", "json")}
    assert reports == swept | {f"{name}.{kind}" for name in ("quickstart", "gsm8k", "gsm8k-round-1")
                               for kind in ("html", "md")}


@needs_data
def test_every_query_of_the_readme_answers(place):
    folder, environment, _ = place
    environment.pop("PREFECT_API_URL", None)
    assert len(QUERIES) == 3
    for query in QUERIES:
        done = subprocess.run([folder / "bin/opd", "sql", "-", "--json"], input=query, cwd=folder, env=environment,
                              text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), list)
    asked = bash(f"opd sql --json - <<'SQL'\n{QUERIES[0]}\nSQL", folder, environment)
    assert json.loads(asked.stdout), "there are tokens"
