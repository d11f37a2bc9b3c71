"""What `opd doctor` asks of a Prefect server: is it there, which version, and is it open to strangers.

What can be asked is asked: with a request that carries no password, one that names a foreign web page as its origin,
one that changes things without a token. The rest is read from the server's own settings. A finding is (level, what,
text): `bad` keeps rounds from being played, `note` is for a person to judge and names the setting that changes it.
Concurrency limits are looked at in flows/limit_checks.py.
"""

import socket
from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit, urlunsplit

from flows.limit_checks import Finding, check_limits, client

FOREIGN = "https://stranger.example"
FILES = "prefect.server.concurrency.lease_storage.filesystem"
TIMEOUT_S = 5.0


def check_server(url: str, fix: bool) -> Iterator[Finding]:
    """Everything about the server at `url`; with `fix` the limits are made, and what changed says so."""
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        yield version(url)
        yield from check_limits(fix)
        yield from strangers(url)
        yield from settings()
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in (401, 403):
            raise
        yield "bad", "prefect api", f"{shown(url)} refuses this client: set PREFECT_API_AUTH_STRING as on the server"
    except httpx.HTTPError as error:
        yield "bad", "prefect api", (f"{shown(url)} does not answer ({type(error).__name__}): start it with `prefect "
                                     "server start`, or unset PREFECT_API_URL to play without it")


def version(url: str) -> Finding:
    """The server's version beside this client's."""
    import prefect

    with client() as api:
        theirs = api.request("GET", "/admin/version").json()
    if theirs == prefect.__version__:
        return "ok", "prefect api", f"{shown(url)}, {theirs}"
    return "note", "prefect api", (f"{shown(url)} is {theirs} and this is {prefect.__version__}: install the same on "
                                   "both")


def strangers(url: str) -> Iterator[Finding]:
    """What a request without a password, from a foreign page, or without a token is answered."""
    import httpx

    with httpx.Client(timeout=TIMEOUT_S) as stranger:
        yield _password(stranger, url)
        yield _origin(stranger, url)
    with client() as api:
        yield _token(api)
    parts = urlsplit(url)
    if parts.scheme == "http" and not loopback(parts.hostname):
        yield "note", "encryption", f"{shown(url)} is not encrypted: put TLS in front of it, or reach it by a tunnel"


def settings() -> Iterator[Finding]:
    """What the server says of itself that no request shows."""
    with client() as api:
        server = api.request("GET", "/admin/settings").json()["server"]
    if server["analytics_enabled"]:
        yield "note", "telemetry", "the server reports to its maker: PREFECT_SERVER_ANALYTICS_ENABLED=false"
    else:
        yield "ok", "telemetry", "off"
    if server["concurrency"]["lease_storage"] == FILES:
        yield "ok", "leases", "kept in files: a restarted server goes on with them"
    else:
        yield "note", "leases", ("a restarted server forgets who holds a limit and leaves it taken: "
                                 f"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE={FILES}")


def shown(url: str) -> str:
    """`url` without a password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _password(stranger, url: str) -> Finding:
    """Ask without a password, here and at every other address of this machine if the server is on it."""
    parts = urlsplit(url)
    hosts = [parts.hostname] if not loopback(parts.hostname) else own_addresses()
    open_at = [host for host in hosts if _answers(stranger, f"{parts.scheme}://{_bracketed(host)}:{_port(parts)}"
                                                            f"{parts.path}/admin/version")]
    if open_at:
        return "note", "password", (f"anybody who reaches {', '.join(open_at)} may read and start runs: "
                                    "PREFECT_SERVER_API_AUTH_STRING=user:password on the server, the same in "
                                    "PREFECT_API_AUTH_STRING here, or PREFECT_SERVER_API_HOST=127.0.0.1")
    if _answers(stranger, f"{url}/admin/version"):
        return "ok", "password", "none asked, and only this machine reaches the server"
    return "ok", "password", "asked"


def _origin(stranger, url: str) -> Finding:
    allowed = stranger.get(f"{url}/health", headers={"Origin": FOREIGN}).headers.get("access-control-allow-origin")
    if allowed in ("*", FOREIGN):
        return "note", "origins", (f"any web page that is open in a browser here may read the API: "
                                   f"PREFECT_SERVER_CORS_ALLOWED_ORIGINS={own_origin(url)}")
    return "ok", "origins", "foreign web pages are not answered"


def _token(api) -> Finding:
    """A change without a token, with the password if there is one: `count` changes nothing."""
    import httpx

    headers = {key: value for key, value in api._client.headers.items() if key.lower() == "authorization"}
    with httpx.Client(timeout=TIMEOUT_S, headers=headers) as plain:
        status = plain.post(f"{str(api.api_url).rstrip('/')}/flows/count", json={}).status_code
    if status == 403:
        return "ok", "tokens", "changes need a token (CSRF)"
    return "note", "tokens", ("a web page may send changes in a browser's name: "
                              "PREFECT_SERVER_CSRF_PROTECTION_ENABLED=true")


def own_addresses() -> list[str]:
    """This machine's addresses that are not loopback. Sends nothing."""
    found = {info[4][0] for info in _addresses_of_name()}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation: asks which of ours would be used
            found.add(probe.getsockname()[0])
        except OSError:  # no network at all
            pass
    return sorted(address for address in found if not loopback(address))


def loopback(host: str) -> bool:
    """Whether only this machine reaches `host`, a name or an address."""
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def own_origin(url: str) -> str:
    """The origin of the server's own pages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _addresses_of_name() -> list:
    try:
        return socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:  # a name that nobody knows
        return []


def _answers(stranger, url: str) -> bool:
    import httpx

    try:
        return stranger.get(url).status_code == 200
    except httpx.HTTPError:  # nothing listens there
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _port(parts) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)
