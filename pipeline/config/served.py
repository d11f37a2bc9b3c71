"""A vLLM server, for rollouts or for scores: where it is, what it serves, how patiently it is asked."""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from pipeline.config.section import Count, Positive, Rate, Section

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH = re.compile(r"[A-Za-z0-9._~%/:@!$&'()*+,;=-]*")
"""Of a URL; everything else is written with % there."""


class Served(Section):
    """A model behind the OpenAI-compatible API of a vLLM server."""

    type: str
    """Stands first in every section; each names its own."""
    url: str
    """`http://host:8000`, or `$NAME`: the environment variable that holds it, so that a server may move in a run."""
    model: str
    """The model's name at the server, as /v1/models lists it."""
    api_key_env: str | None = None
    """Environment variable that holds the server's API key. The key itself never goes into a config."""
    concurrency: Positive = 16
    """Requests in flight at once."""
    timeout_s: Rate = 600.0
    """Seconds until a request without an answer counts as failed."""
    retries: Annotated[Count, Field(le=20)] = 5
    """How often a request is sent again after a connection error or a status 5xx or 429: after .5, 1, 2, 4 s and so on,
    never longer than 30."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        return url if url.startswith("$") and _VARIABLE.fullmatch(url[1:]) else checked_url(url)

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not _VARIABLE.fullmatch(name):
            raise ValueError("api_key_env is no name of an environment variable: put the key into one, and its name "
                             "here; a key in a config would be stored with the run")
        return name

    @field_validator("model")
    @classmethod
    def _names_a_model(cls, model: str) -> str:
        if not model.strip() or not model.isprintable():
            raise ValueError("model is empty or not printable: give the name that the server's /v1/models lists")
        return model


def checked_url(url: str) -> str:
    """The URL without a trailing slash or /v1. Raises ValueError unless it is one of a server and nothing else."""
    parts = urlsplit(url)
    try:
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError as error:
        raise ValueError(f"url = {url!a} has no valid host or port: write http://host:8000") from error
    if parts.username or parts.password:
        raise ValueError("url holds a user or a password, which would be stored with the run: use api_key_env")
    plain = url.isprintable() and _PATH.fullmatch(parts.path) and not parts.query and not parts.fragment
    if parts.scheme not in ("http", "https") or not host or not plain:
        raise ValueError(f"url = {url!a} is no server's address: write http://host:8000, or $NAME for an environment "
                         "variable that holds it")
    return url.rstrip("/").removesuffix("/v1")
