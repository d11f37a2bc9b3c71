"""A client of a Prefect server that is busy at the moment, as one on SQLite often is."""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.api import client


@pytest.fixture
def busy_server():
    """A server that refuses as many requests as its `refusals`, then says how many it had."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked += 1
            refused = self.server.asked <= self.server.refusals
            self.send_response(self.server.refused_with if refused else 200)
            body = str(self.server.asked).encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.refusals, server.refused_with = 0, 0, 503
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}):
        yield server
    server.shutdown()
    server.server_close()


def test_a_busy_server_is_asked_again_within_a_second(busy_server):
    busy_server.refusals = 2
    begun = time.monotonic()
    with client() as api:
        assert api.request("GET", "/anything").json() == 3
    assert time.monotonic() - begun < 1.0  # Prefect's own client takes six: it waits 2 s, then 4 s


def test_what_a_server_refuses_for_good_is_not_asked_again(busy_server):
    busy_server.refusals, busy_server.refused_with = 1, 404
    with client() as api, pytest.raises(PrefectHTTPStatusError, match="404"):
        api.request("GET", "/anything")
    assert busy_server.asked == 1
