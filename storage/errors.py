"""Exceptions of the whole product. Each class also is the standard type it refines.

`UserError` and its children are mistakes a person can mend: the command line prints their one line and exits 2,
and a Prefect task never retries them. Every message says what, where, why and what to do, on one line.
"""


class OpdError(Exception):
    """Anything this product raises on purpose."""


class UserError(OpdError, ValueError):
    """A mistake in what was asked for: config, arguments, inputs. Exit code 2, never retried."""


class ConfigError(UserError):
    """A config that is not valid; the message names the key."""


class MissingObject(OpdError, KeyError):
    """An object the store does not hold; `key` is its full key."""

    def __init__(self, key: str):
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"no object {self.key} in the store: it was never written or was deleted; run `opd verify`"


class IntegrityError(OpdError, RuntimeError):
    """Bytes on disk are not the bytes that were committed; `kind` says in one word what is wrong with them."""

    def __init__(self, message: str, kind: str = "damaged"):
        super().__init__(message)
        self.kind = kind
