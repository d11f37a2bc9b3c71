"""What `opd doctor` finds on a server, which devices a machine has, and what artifacts are called."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.artifacts import artifact_key
from flows.limits import run_limit, visible_gpus
from flows.server_checks import loopback, own_addresses, own_origin, shown

GPUS = ("GPU-1c8f2a3b-0001", "GPU-5d2e9f7a-0002", "GPU-5d2e9f7b-0003")


def findings(done) -> dict[str, tuple[str, str]]:
    """(level, text) of each line of `opd doctor --json`, by what it is about."""
    return {line["what"]: (line["level"], line["text"]) for line in json.loads(done.stdout)}


def test_doctor_finds_nothing_to_harden_on_a_hardened_server(prefect):
    done = prefect.opd("doctor", "--json")
    found = findings(done)
    assert done.returncode == 0
    for what in ("prefect api", "limit", "password", "origins", "tokens", "telemetry", "leases"):
        assert found[what][0] == "ok", found[what]
    assert prefect.environment["PREFECT_API_AUTH_STRING"] not in done.stdout


def test_doctor_without_the_password_says_where_it_goes(prefect):
    done = prefect.opd("doctor", "--json", PREFECT_API_AUTH_STRING="")
    assert done.returncode == 1 and "set PREFECT_API_AUTH_STRING" in findings(done)["prefect api"][1]


@contextmanager
def answers_anybody(host: str):
    """A server on `host` that says 200 to every GET."""

    class Open(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'"3.7.7"')

        def log_message(self, *_):
            pass

    server = HTTPServer((host, 0), Open)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_that_others_reach_without_a_password_is_found_from_its_loopback_address():
    import httpx

    from flows.server_checks import _password

    addresses = [address for address in own_addresses() if ":" not in address]
    if not addresses:
        pytest.skip("this machine has no address but loopback")
    with httpx.Client(timeout=5) as stranger:
        with answers_anybody("0.0.0.0") as port:
            level, _, text = _password(stranger, f"http://127.0.0.1:{port}/api")
            assert level == "note" and addresses[0] in text and "PREFECT_SERVER_API_AUTH_STRING" in text
        with answers_anybody("127.0.0.1") as port:
            assert _password(stranger, f"http://127.0.0.1:{port}/api")[0] == "ok"


def test_addresses_are_shown_without_a_password():
    assert shown("https://me:secret@prefect.example/api") == "https://prefect.example/api"
    assert own_origin("http://me:secret@127.0.0.1:4200/api") == "http://127.0.0.1:4200"
    assert all(map(loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(loopback, ("10.0.0.1", "fe80::1%eth0", "localhost.example")))


@pytest.mark.parametrize("visible, found", [
    (None, GPUS), ("", ()), ("-1", ()), ("1", GPUS[1:2]), ("2,0", (GPUS[2], GPUS[0])), ("0,7,1", GPUS[:1]),
    ("GPU-1c", GPUS[:1]), ("GPU-5d2e9f7b,0", (GPUS[2], GPUS[0])), ("GPU-5d2e", ()), ("MIG-ab12", ("MIG-ab12",)),
])
def test_visible_gpus_are_those_that_cuda_would_see(visible, found):
    assert visible_gpus(visible, GPUS) == list(found)


def test_a_machine_without_gpus_has_none_to_see():
    assert visible_gpus(None, ()) == visible_gpus("0", ()) == []


def test_a_runs_limit_is_of_the_run_and_its_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_limit("store", "a") == run_limit(str(tmp_path / "store"), "a") != run_limit("other", "a")
    assert run_limit("s3://bucket/x", "a") != run_limit("s3://bucket/y", "a")


RUN_IDS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)


@given(RUN_IDS, RUN_IDS)
def test_keys_of_artifacts_are_valid_and_differ_where_run_ids_do(one, two):
    assert re.fullmatch("[a-z0-9-]+", artifact_key(one, "report"))
    assert (artifact_key(one, "report") == artifact_key(two, "report")) == (one == two)
