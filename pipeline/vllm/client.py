"""Asking a vLLM server: a bounded number of requests in flight, tried again where that helps, one line where it fails.

Tried again, after .5, 1, 2, 4 s and so on up to 30: connection errors, timeouts, answers that break off, status 429
and 5xx. Every other status is the server's final word. Whatever fails, the first failure ends all: no request is begun
after it, and one UserError says which server, what, and what to do.

An answer is somebody else's bytes: it is read up to a limit, must be a JSON object, and what is shown of it is cut
short and made printable. Redirects are not followed, so an API key goes to the configured host alone.
"""

import contextlib
import http.client
import json
import os
import random
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pipeline.config.served import Served, checked_url
from pipeline.vllm.client_errors import (
    LONGEST_PAUSE_S,
    TRANSIENT,
    Busy,
    Refusal,
    json_object,
    message,
    reason,
    refused,
    short,
)
from storage.errors import UserError
from storage.text import printable

Answer = dict[str, Any]
Result = TypeVar("Result")

FIRST_PAUSE_S = 0.5
MAX_ANSWER_BYTES = 1 << 30
"""prompt_logprobs of 16 k tokens at K = 128 take 150 MB."""


class _Stopped(Exception):
    """Another request has failed."""


class VllmClient:
    """One server, asked by up to `concurrency` threads, each with a connection that it keeps."""

    def __init__(self, settings: Served, role: str):
        """`role` says in messages what the server is, such as "rollout server"."""
        self.settings, self.url = settings, _url(settings)
        self.name = f"{role} {self.url}"
        self.headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if settings.api_key_env:
            self.headers["Authorization"] = f"Bearer {_key(settings.api_key_env, self.name)}"
        self.local, self.failed = threading.local(), threading.Event()
        self.connections: list[http.client.HTTPConnection] = []
        """Of all threads."""
        self.window: int | None = None
        """Tokens that the model takes; None before `check_served`, and of a server that does not tell."""

    def get(self, path: str) -> Answer:
        """The answer to a GET."""
        return self._one("GET", path, None, self.settings.retries)

    def post(self, path: str, body: Answer | None = None) -> Answer:
        """The answer to one POST that is sent once: it changes the server. An empty answer is {}."""
        return self._one("POST", path, body, 0)

    def complete(self, bodies: Sequence[Answer], read: Callable[[int, Answer], Result],
                 on_done: Callable[[int], None] = lambda done: None) -> list[Result]:
        """Send every body to /v1/completions; returns what `read(index, answer)` makes of each, in order.

        `read` runs in the threads; it raises Malformed for an answer that cannot be right.
        """
        self.failed.clear()
        results: list = [None] * len(bodies)

        def one(index: int) -> int:
            try:
                results[index] = read(index, self._request("POST", "/v1/completions", bodies[index],
                                                            self.settings.retries))
            except Exception:
                self.failed.set()
                raise
            return index

        with ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="vllm-client") as pool:
            futures = [pool.submit(one, index) for index in range(len(bodies))]
            try:
                for done, future in enumerate(as_completed(futures), start=1):
                    future.result()
                    on_done(done)
            except BaseException as error:
                self._give_up(futures)
                explained = self._first_failure(futures, error)
                if explained is error:
                    raise
                raise explained from error
        self._close_all()
        return results

    def check_served(self) -> None:
        """Look for the configured model, and for its window. Raises UserError if the server does not serve it."""
        listed = self.get("/v1/models").get("data")
        entries = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        for entry in entries:
            if entry.get("id") == self.settings.model:
                window = entry.get("max_model_len")
                self.window = window if isinstance(window, int) else None
                return
        names = ", ".join(sorted(str(entry.get("id")) for entry in entries)) or "nothing"
        raise UserError(f"{self.name} does not serve {self.settings.model!a}, it serves {short(names)}: set `model` "
                        "to one of them, or start the server with --served-model-name")

    def check_fits(self, tokens: int, what: str) -> None:
        """Raise UserError for more tokens than the served model's window, if it was told; `what` says whose they are.
        """
        if self.window is not None and tokens > self.window:
            raise UserError(f"{self.name} takes {self.window} tokens, {what} need {tokens}: start it with "
                            f"--max-model-len {tokens} or more, or lower prompts.max_prompt_tokens or "
                            "rollout.max_new_tokens")

    def version(self) -> str:
        """vLLM's version at the server."""
        version = self.get("/version").get("version")
        if not isinstance(version, str) or not 0 < len(version) < 80 or not version.isprintable():
            raise self.malformed("its /version has no version: it is no vLLM server")
        return version

    def malformed(self, problem: str) -> UserError:
        """What to say of an answer that cannot be right."""
        return UserError(f"{self.name} gave an answer that cannot be right: {printable(problem)}; nothing of it was "
                         "kept; check that it is vLLM 0.32 or newer and serves this model")

    def _one(self, method: str, path: str, body: Answer | None, retries: int) -> Answer:
        self.failed.clear()
        try:
            return self._request(method, path, body, retries)
        except (Refusal, *TRANSIENT) as error:
            raise self._explained(error) from error

    def _give_up(self, futures: list) -> None:
        """Begin nothing more, and cut off what is under way: a Ctrl-C does not wait for a server's answers."""
        self.failed.set()
        for future in futures:
            future.cancel()
        while wait(futures, timeout=0.05).not_done:  # again and again: a thread may be about to connect
            for sock in [connection.sock for connection in self.connections]:
                if sock is not None:
                    with contextlib.suppress(OSError):  # closed by its own thread just now
                        sock.shutdown(socket.SHUT_RDWR)

    def _close_all(self) -> None:
        """Their threads are gone; a closed connection opens itself again when used."""
        while self.connections:
            self.connections.pop().close()

    def _first_failure(self, futures: list, error: BaseException) -> BaseException:
        """What ended the requests: not the stop that it caused in others."""
        if isinstance(error, _Stopped):
            found = (future.exception() for future in futures if future.done() and not future.cancelled())
            error = next((each for each in found if each and not isinstance(each, _Stopped)), error)
        return self._explained(error)

    def _explained(self, error: BaseException) -> BaseException:
        if isinstance(error, Refusal):
            return UserError(refused(self.name, self.settings, error))
        if isinstance(error, TRANSIENT):
            return UserError(f"{self.name} does not answer ({reason(error)}), asked {error.tried} times: start "
                             "it again, or mend `url`; finished shards are kept, the same command goes on")
        return error

    def _request(self, method: str, path: str, body: Answer | None, retries: int) -> Answer:
        """One request and its repetitions. Raises Refusal, one of TRANSIENT after the last, or _Stopped."""
        data = None if body is None else json.dumps(body).encode()
        for tried in range(retries + 1):
            if self.failed.is_set():
                raise _Stopped
            try:
                return self._once(method, path, data)
            except TRANSIENT as error:
                self._close()
                error.tried = tried + 1
                if tried == retries:
                    raise
                pause_s = max(_pause_s(tried), getattr(error, "wait_s", 0.0))
                self.failed.wait(pause_s * random.uniform(0.75, 1.0))
        raise AssertionError("unreachable")

    def _once(self, method: str, path: str, data: bytes | None) -> Answer:
        connection = self._connection()
        connection.request(method, self.path + path, data, self.headers)
        response = connection.getresponse()
        content = response.read(MAX_ANSWER_BYTES + 1)
        if len(content) > MAX_ANSWER_BYTES:
            self._close()
            raise Refusal(response.status, f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB")
        if response.status == 429 or response.status >= 500:
            raise Busy(response.status, message(content), response.headers.get("Retry-After"))
        if response.status >= 300:
            raise Refusal(response.status, message(content))
        return json_object(content, response.status)

    def _connection(self) -> http.client.HTTPConnection:
        """This thread's, opened when needed."""
        connection = getattr(self.local, "connection", None)
        if connection is None:
            parts = urlsplit(self.url)
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            connection = self.local.connection = kind(parts.hostname, parts.port, timeout=self.settings.timeout_s)
            self.connections.append(connection)
        return connection

    @property
    def path(self) -> str:
        """What the URL has before /v1."""
        return urlsplit(self.url).path

    def _close(self) -> None:
        connection = getattr(self.local, "connection", None)
        if connection is not None:
            connection.close()
            self.local.connection = None


def prompt_request(model: str, tokens: list[int], count: int) -> Answer:
    """A body that asks for the raw log-prob of every token but the first, and of the `count` likeliest beside it."""
    return {"model": model, "prompt": tokens, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": count,
            "return_token_ids": True, "skip_special_tokens": False}


def _url(settings: Served) -> str:
    if not settings.url.startswith("$"):
        return settings.url
    name = settings.url[1:]
    if not os.environ.get(name):
        raise UserError(f"url = '${name}', but the environment variable {name} is not set: set it to the server's "
                        "address, such as http://host:8000")
    try:
        return checked_url(os.environ[name])
    except ValueError as error:
        raise UserError(f"environment variable {name}: {error}") from error


def _key(name: str, server: str) -> str:
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(f"{server}: the environment variable {name} (api_key_env) is not set: set it to the server's "
                        "API key")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"{server}: the environment variable {name} holds characters that no API key has")
    return key


def _pause_s(tried: int) -> float:
    return min(FIRST_PAUSE_S * 2 ** tried, LONGEST_PAUSE_S)
