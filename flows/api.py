"""Requests to the Prefect server of this process.

    with client() as api:
        api.read_work_pool("opd")

A server on SQLite, which is the default, answers 503 to a change that met another one, and task runs that report
themselves make many: of the requests for a limit's slot one in ten is refused here. Prefect's client asks again after
2 s, twice the fixed cost of a small round; this one after 20 ms.
"""

import os
import ssl
from functools import lru_cache

BUSY = 503
WAITS_S = (0.02, 0.1, 0.5)
"""Before the first three times that a busy server is asked again; the last two of Prefect's five waits are its own."""


def server_url() -> str | None:
    """The API that flow runs talk to, from the environment or a Prefect profile.

    Without one Prefect starts a server for each process, where limits are not asked for: they would guard nothing, and
    a killed process would leave them taken for ever.
    """
    from prefect.settings import PREFECT_API_URL

    return os.environ.get("PREFECT_API_URL") or PREFECT_API_URL.value()


def client():
    """A client of the server, which asks again if it is busy or away."""
    from prefect.client.orchestration import get_client

    api = get_client(sync_client=True, httpx_settings={"event_hooks": {"response": [_soon]}, "verify": _certificates()})
    api._client._has_connected = True  # else a server that is being restarted would not be asked again for a minute
    return api


def _soon(response) -> None:
    """Have a busy server asked again soon, a few times for each request."""
    if response.status_code == BUSY:
        waits = response.request.extensions.setdefault("opd_waits", iter(WAITS_S))
        if wait_s := next(waits, None):
            response.headers.setdefault("Retry-After", str(wait_s))


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """What every client of Prefect's reads for itself, in 18 ms."""
    import certifi
    from prefect.settings import PREFECT_API_SSL_CERT_FILE, PREFECT_API_TLS_INSECURE_SKIP_VERIFY

    context = ssl.create_default_context(cafile=PREFECT_API_SSL_CERT_FILE.value() or certifi.where())
    if PREFECT_API_TLS_INSECURE_SKIP_VERIFY.value():
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
