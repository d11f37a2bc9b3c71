"""A tiny HTTP server over raw sockets that says whatever a test wants, and a relay that can go dead half-way."""

import json
import socket
import threading
from collections.abc import Callable
from contextlib import contextmanager

Reply = bytes | None
"""What is sent back; None: the connection is closed without a word."""


@contextmanager
def saying(reply: Callable[[int, str, dict], Reply]):
    """Serve on a free port; `reply(number of the request, "METHOD /path", body)` says what is answered. Yields the url
    and a log of the requests."""
    log: list[tuple[str, dict]] = []
    lock = threading.Lock()

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            while line := lines.readline():
                headers = list(iter(lines.readline, b"\r\n"))
                body = json.loads(lines.read(_size(headers)) or "{}")
                with lock:
                    number = len(log)
                    log.append((line.decode().rsplit(" ", 1)[0], body))
                said = reply(number, log[number][0], body)
                if said is None:
                    return
                connection.sendall(said)

    with _listening(serve) as url:
        yield url, log


@contextmanager
def relaying(port: int, requests: int):
    """A relay to `port` that is dead once `requests` completions went through. Yields (url, dead, revive)."""
    left, lock, dead = [requests], threading.Lock(), threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            while line := lines.readline():
                head = [line, *iter(lines.readline, b"\r\n"), b"\r\n"]
                data = b"".join(head) + lines.read(_size(head))
                with lock:
                    left[0] -= b"/v1/completions" in line
                    if left[0] < 0:
                        dead.set()
                if dead.is_set():
                    return
                connection.sendall(_asked(port, data.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)))

    def revive() -> None:
        left[0] = 1 << 30
        dead.clear()

    with _listening(serve) as url:
        yield url, dead, revive


def answer(body, status: str = "200 OK", *headers: str) -> bytes:
    """An HTTP response with `body` as JSON, or as it is if bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers])
    return head.encode() + b"\r\n\r\n" + content


def _size(head: list[bytes]) -> int:
    return next((int(line.split(b":")[1]) for line in head if line.lower().startswith(b"content-length")), 0)


def _asked(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as server:
        server.sendall(data)
        parts = []
        while part := server.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


@contextmanager
def _listening(serve: Callable[[socket.socket], None]):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:  # closed: the test is over
                    return
                threading.Thread(target=serve, args=[connection], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
