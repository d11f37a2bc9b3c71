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
WAITS_S = (0.02, 0.1, 0.5, 2.5, 12.5)
"""Before the first, second, ... time that a busy server is asked again; Prefect's client asks five times."""


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

    waits = iter(WAITS_S)

    def soon(response) -> None:
        if response.status_code == BUSY:
            response.headers.setdefault("Retry-After", str(next(waits, WAITS_S[-1])))

    settings = {"event_hooks": {"response": [soon]}}
    if (server_url() or "").startswith("http:"):
        settings["verify"] = _no_certificates()
    api = get_client(sync_client=True, httpx_settings=settings)
    api._client._has_connected = True  # else a server that is being restarted would not be asked again for a minute
    return api


@lru_cache(maxsize=1)
def _no_certificates() -> ssl.SSLContext:
    """Where nothing is encrypted: reading the certificates of the world would take 18 ms for every client."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
