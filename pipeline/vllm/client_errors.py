"""What a vLLM server's failures are called, and what is said of them: one line, cut short and printable."""

import http.client
import json
from typing import Any

from pipeline.config.served import Served
from storage.text import printable

SHOWN = 200
"""Characters shown of what a server said."""
TRANSIENT = (OSError, http.client.HTTPException)
"""What a server that is restarted, overloaded or far away causes: broken connections, timeouts, half answers."""
LONGEST_PAUSE_S = 30.0
"""The longest that a server may ask to be left alone."""


class Refusal(Exception):
    """The server's final word on one request."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Busy(OSError):
    """Status 429 or 5xx."""

    def __init__(self, status: int, message: str, retry_after: str | None):
        super().__init__(f"status {status}{': ' if message else ''}{message}")
        seconds = float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else 0.0
        self.wait_s = min(seconds, LONGEST_PAUSE_S)


def refused(name: str, settings: Served, refusal: Refusal) -> str:
    """What to say of a refusal, and what to do."""
    said = short(refusal.message) or "no reason given"
    if refusal.status in (401, 403):
        if settings.api_key_env:
            return f"{name} does not accept the key in ${settings.api_key_env}: set it to the server's"
        return f"{name} wants an API key: name the environment variable that holds it as api_key_env"
    if refusal.status == 404:
        return (f"{name} has no model {settings.model!a}, or is no vLLM server ({said}): check `model` "
                "and `url`")
    if "max allowed" in refusal.message and "logprobs" in refusal.message:
        return f"{name} gives fewer log-probs than needed ({said}): start it with a larger --max-logprobs"
    return f"{name} refused a request with status {refusal.status}: {said}"


def json_object(content: bytes, status: int) -> dict[str, Any]:
    """An answer's body; {} if empty. Raises Refusal."""
    if not content:
        return {}
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refusal(status, "an answer that is no JSON") from error
    if not isinstance(answer, dict):
        raise Refusal(status, "an answer that is no JSON object")
    return answer


def message(content: bytes) -> str:
    """What an error's body says, however it is laid out."""
    try:
        answer = json.loads(content[:1 << 20])
    except (ValueError, RecursionError):
        return content[:SHOWN].decode("utf-8", "replace")
    for name in ("error", "message", "detail"):
        if isinstance(answer, dict) and name in answer:
            answer = answer[name]
    return answer if isinstance(answer, str) else ""


def reason(error: BaseException) -> str:
    """Why a request failed."""
    return short(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def short(text: str) -> str:
    """What is shown of somebody else's text."""
    text = printable(str(text).strip())
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
