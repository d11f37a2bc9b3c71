"""Concurrency limits on the Prefect server: one for each device of this machine, one for each run.

A stage holds its device's limit from before its child process loads models until they are gone, shard after shard:
they stay in memory between shards, so a slot that was given back in between would let two runs share a GPU. Who
plays a run holds the run's limit. `opd doctor --fix` makes the limits of devices, and one that is missing fails the
flow run at once; the first flow run of a run makes the run's.

Both are leases, renewed every RENEW_S. A holder that was SIGKILLed keeps its slot for up to LEASE_S and the 15 s that
the server takes to look; then it is free. A server that was restarted forgets leases and leaves their slots taken,
unless it keeps them in files (`opd doctor` says how): living holders mend that, and `opd doctor --fix` what dead ones
left. Limits save memory and work; that a round is committed once does not rest on them but on put-if-absent in the
store.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from functools import lru_cache
from pathlib import Path
from uuid import UUID

from flows.api import client, server_url
from storage.errors import OpdError, UserError

LEASE_S = 60.0
"""The least that Prefect's API takes, and what Prefect itself uses for its tasks."""
RENEW_S = 20.0
"""A third of it, so that one lost renewal costs nothing."""
POLL_S = 2.0
LOCKED, UNPROCESSABLE, GONE = 423, 422, 410
"""What the API answers where no slot is free, where there are none at all, and for a lease that it does not know."""

_played: ContextVar[str | None] = ContextVar("played", default=None)
"""The run limit that this flow run, or the one it is nested in, holds."""


class Busy(OpdError):
    """Somebody else holds the limit."""


def device_limits() -> list[str]:
    """Names of the limits of every device here that stages may use: the visible GPUs, or else the CPU."""
    return limits_of(gpus_here())


def limits_of(gpus: Iterable[str]) -> list[str]:
    """Names of the limits of these GPUs; that of the CPU where there are none."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", platform.node()) or "host"
    return [f"opd:gpu:{host}:{uuid}" for uuid in gpus] or [f"opd:cpu:{host}"]


def gpus_here() -> list[str]:
    """UUIDs of the GPUs that stages started here may use."""
    return visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), installed_gpus())


def run_limit(store: str, run: str) -> str:
    """Name of the limit of `run` in `store`; a local store is known by its resolved folder."""
    place = store if "://" in store else str(Path(store).resolve())
    return f"opd:run:{run}:{hashlib.sha256(place.encode()).hexdigest()[:8]}"


@contextmanager
def devices(gpus: Iterable[str], wanted: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Hold these GPUs, or this machine's CPU, waiting for them while they are `wanted`: then raises Busy. Raises
    UserError if a limit does not exist.

    They are taken one after the other in the order of their names, so that two who want the same ones do not wait for
    each other.
    """
    with ExitStack() as held:
        for name in sorted(set(limits_of(gpus))):
            held.enter_context(_held(name, wanted))
        yield


@contextmanager
def playing(store: str, run: str, *, wait: bool) -> Iterator[None]:
    """Hold the run while it is played; flows nested in this one hold it too. Without `wait` raises Busy if it is held.
    """
    name = run_limit(store, run)
    if _played.get() == name:
        yield
        return
    if server_url():
        _make(name)
    with _held(name, lambda: wait):
        token = _played.set(name)
        try:
            yield
        finally:
            _played.reset(token)


@contextmanager
def _held(name: str, wanted: Callable[[], bool]) -> Iterator[None]:
    """Hold the one slot of `name` for as long as the block runs; raises Busy if it is no longer wanted before it is
    there."""
    if not server_url():
        yield
        return
    lease = Lease(name)
    if not lease.take():
        if not wanted():
            raise Busy(name)
        _logger().info("waiting for %s, which another flow run holds; one that was killed loses it within %.0f s. If "
                       "nothing runs there: opd doctor --fix", name, LEASE_S + 15)
        while not lease.take():
            time.sleep(POLL_S)
            if not wanted():
                raise Busy(name)
    over = threading.Event()
    threading.Thread(target=copy_context().run, args=(_keep, lease, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        lease.give_back()


def _keep(lease: "Lease", over: threading.Event) -> None:
    """Renew a lease until `over`."""
    while not over.wait(RENEW_S):
        lease.renew()


class Lease:
    """One slot of a limit, for one holder. May be renewed and given back from two threads.

    The API is asked directly: prefect.concurrency waits silently, or logs an error for every slot that is not free.
    """

    def __init__(self, name: str):
        self.name = name
        self._id: UUID | None = None
        self._known = 0.0
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take a slot; False if none is free. Raises UserError for a limit that does not exist."""
        from prefect.exceptions import PrefectHTTPStatusError

        try:
            with client() as api:
                taken = api.increment_concurrency_slots_with_lease([self.name], 1, "concurrency", LEASE_S).json()
        except PrefectHTTPStatusError as error:
            if error.response.status_code == LOCKED:
                return False
            if error.response.status_code != UNPROCESSABLE:  # what a limit of no slots is
                raise
            taken = {"limits": []}
        if not taken["limits"]:
            raise UserError(f"the Prefect server has no concurrency limit {self.name} with a slot: run `opd doctor "
                            "--fix` on this machine")
        self._id, self._known = UUID(taken["lease_id"]), time.monotonic()
        return True

    def renew(self) -> None:
        """Renew the lease. A server that is away is waited for: the work of hours is worth more than a slot."""
        import httpx

        with self._lock:
            try:
                self._renew()
            except httpx.HTTPError as error:
                _logger().warning("the lease on %s is not renewed: %s", self.name, type(error).__name__)

    def give_back(self) -> None:
        """Free the slot."""
        import httpx

        with self._lock:
            try:
                self._renew()  # the server says nothing when it is given back a lease that it has forgotten
                if self._id:
                    with client() as api:
                        api.release_concurrency_slots_with_lease(self._id)
                self._id = None
            except httpx.HTTPError as error:
                _logger().warning("%s is not given back, its lease ends by itself: %s", self.name, type(error).__name__)

    def _renew(self) -> None:
        from prefect.exceptions import PrefectHTTPStatusError

        if self._id is None:
            return
        try:
            with client() as api:
                api.renew_concurrency_lease(self._id, LEASE_S)
            self._known = time.monotonic()
        except PrefectHTTPStatusError as error:
            if error.response.status_code != GONE:
                raise
            self._forgotten()

    def _forgotten(self) -> None:
        """The server knows nothing of the lease. If it cannot have ended by itself the server was restarted, and the
        slot is still taken in its database, for nobody else to free: it is freed and taken anew."""
        held_s = time.monotonic() - self._known
        self._id = None
        if held_s < LEASE_S:
            with client() as api:
                api.release_concurrency_slots([self.name], 1, max(held_s, 0.001))
            self.take()
        if self._id is None:
            _logger().warning("the server has forgotten that this flow run holds %s: another may take it", self.name)


def _make(name: str) -> None:
    """Create a limit of one slot, if it is not there."""
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with client() as api:
        try:
            api.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            try:
                api.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
            except ObjectAlreadyExists:  # another flow run was quicker
                pass


def _logger():
    from prefect import get_run_logger

    return get_run_logger()


@lru_cache(maxsize=1)
def installed_gpus() -> tuple[str, ...]:
    """UUIDs of this machine's GPUs, in nvidia-smi's order; none without the driver. Creates no CUDA context."""
    if not shutil.which("nvidia-smi"):
        return ()
    asked = subprocess.run(["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"], text=True, capture_output=True)
    return tuple(line.strip() for line in asked.stdout.splitlines() if line.startswith("GPU-"))


def visible_gpus(visible: str | None, installed: tuple[str, ...]) -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES = `visible` leaves of those installed, by the rules of CUDA: numbers or UUID
    prefixes, and nothing counts from the first one that does not exist."""
    if visible is None:
        return list(installed)
    found = []
    for part in map(str.strip, visible.split(",")):
        named = [uuid for at, uuid in enumerate(installed) if part == str(at) or (part and uuid.startswith(part))]
        if part.startswith("MIG-"):
            named = [part]
        if len(named) != 1:
            break
        found += named
    return found
