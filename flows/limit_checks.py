"""The concurrency limits that flow runs need, as `opd doctor` finds them, and as `opd doctor --fix` makes them."""

from collections.abc import Iterator

from flows.limits import device_limits

Finding = tuple[str, str, str]
"""(level, what, text)"""
TIMEOUT_S = 5.0
MOST = 200
"""The server lists no more at once."""


def check_limits(fix: bool) -> Iterator[Finding]:
    """One finding for each device of this machine, and one for each limit of ours that is held by nobody."""
    for name in device_limits():
        yield _device(name, fix)
    held = [name for name, slots in _ours() if slots]
    running = _running() if held else []
    for name in held:
        if running:
            yield "ok", "limit", f"{name} is held while {', '.join(running)} runs"
        elif fix:
            _make_anew(name)
            yield "ok", "limit", f"{name} was held while no flow run of opd was running: freed"
        else:
            yield "note", "limit", (f"{name} is held while no flow run of opd is running: a lease ends by itself "
                                    "within 75 s, `opd doctor --fix` ends it now")


def client():
    """A client of the server that does not wait for long."""
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True, httpx_settings={"timeout": TIMEOUT_S})


def _device(name: str, fix: bool) -> Finding:
    wrong = _wrong(name)
    if not wrong:
        return "ok", "limit", f"{name}: one slot"
    if not fix:
        return "bad", "limit", f"{name}: {wrong}; run `opd doctor --fix`"
    _make_anew(name)
    return "ok", "limit", f"{name}: {wrong}; made anew, with one slot"


def _wrong(name: str) -> str | None:
    """What is wrong with a device's limit."""
    from prefect.exceptions import ObjectNotFound

    with client() as api:
        try:
            limit = api.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            return "missing, so every flow run fails"
    if not limit.active:
        return "switched off, so two runs may share the device"
    if limit.slot_decay_per_second:
        return "gives slots back while they are used"
    return None if limit.limit == 1 else f"{limit.limit} slots instead of one"


def _make_anew(name: str) -> None:
    """Delete the limit and create it: a lease on the old one, ending later, takes no slot from the new one."""
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectNotFound

    with client() as api:
        try:
            api.delete_global_concurrency_limit_by_name(name)
        except ObjectNotFound:  # that was what was wrong
            pass
        api.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))


def _ours() -> Iterator[tuple[str, int]]:
    """(name, slots taken) of every limit of devices and runs."""
    with client() as api:
        offset = 0
        while found := api.read_global_concurrency_limits(limit=MOST, offset=offset):
            yield from ((each.name, each.active_slots) for each in found if each.name.startswith("opd:"))
            offset += MOST


def _running() -> list[str]:
    """Names of our flow runs that the server takes to be running, those that are nested in others left out."""
    wanted = {"tags": {"all_": ["opd"]}, "state": {"type": {"any_": ["RUNNING", "CANCELLING"]}},
              "parent_task_run_id": {"is_null_": True}}
    with client() as api:
        return [each["name"] for each in api.request("POST", "/flow_runs/filter", json={"flow_runs": wanted}).json()]
