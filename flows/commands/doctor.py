"""`opd doctor`: is this machine ready, and what is odd about it. Exit code 1 if something needed is missing."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

from flows.commands.options import add_json, add_store, verb

NEEDED = {"torch": "2.11", "transformers": "5.16", "pyarrow": "26.0", "pydantic": "2.11"}
OPTIONAL = {"duckdb": ("2.0", "opd sql and SQL masks"), "prefect": ("3.7", "flows and schedules"),
            "datasets": ("5.2", "data sets by their hub names"), "s3fs": ("2026.2", "stores on s3://"),
            "vllm": ("0.32", "vLLM rollouts")}
LITTLE_DISK = 10 << 30


def add(verbs) -> None:
    parser = verb(verbs, "doctor", run, "Check this machine: versions, devices, disk, data, Prefect.")
    parser.add_argument("--fix", action="store_true", help="make the Prefect server's concurrency limits of this "
                                                           "machine's devices")
    add_store(parser)
    add_json(parser)


def run(arguments) -> int:
    findings = [*versions(), device(), disk(arguments.store), data(), *prefect(arguments.fix)]
    if arguments.json:
        print(json.dumps([dict(zip(("level", "what", "text"), finding)) for finding in findings]))
    else:
        for level, what, text in findings:
            print(f"{level:<5} {what:<14} {text}")
    return 1 if any(level == "bad" for level, *_ in findings) else 0


def versions():
    """(level, what, text) for Python and each distribution."""
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield "ok" if fits else "bad", "python", f"{sys.version.split()[0]} (3.11 to 3.13 are tested)"
    for name, least in NEEDED.items():
        yield _version(name, least, "bad", "every stage")
    for name, (least, what_for) in OPTIONAL.items():
        yield _version(name, least, "note", what_for)


def device():
    """CPU or GPU, and how many of it. Importing torch takes seconds, so only this verb does."""
    if importlib.util.find_spec("torch") is None:
        return "bad", "device", "unknown without torch"
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return "ok", "device", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}"
    return "ok", "device", f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads per stage"


def disk(store: str):
    """Free bytes where a local store lies or would lie."""
    if "://" in store:
        return "ok", "store", f"{store} is an object store"
    folder = Path(store).resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    level = "ok" if free > LITTLE_DISK and os.access(folder, os.W_OK) else "note"
    writable = "writable" if os.access(folder, os.W_OK) else "not writable"
    return level, "store", f"{store}: {free / 2**30:.0f} GiB free, {writable}"


def data():
    """Where data sets come from."""
    folder = os.environ.get("OPD_DATA_DIR")
    if not folder:
        return "ok", "data", "OPD_DATA_DIR is not set: data sets come from the hub"
    if not Path(folder).is_dir():
        return "bad", "data", "OPD_DATA_DIR names no folder"
    return "ok", "data", f"OPD_DATA_DIR holds {len(list(Path(folder).glob('*.*')))} files"


def prefect(fix: bool):
    """How rounds would be played, and what flows/server_checks.py finds on the server. Imports Prefect, 2 s."""
    if importlib.util.find_spec("prefect") is None:
        yield "note", "prefect api", "unknown without prefect"
        return
    from flows.api import server_url
    from flows.server_checks import check_server

    if url := server_url():
        yield from check_server(url, fix)
    else:
        yield "ok", "prefect api", "PREFECT_API_URL is not set: `opd run` plays without Prefect"


def _version(name: str, least: str, level: str, what_for: str):
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return level, name, f"not installed; needed for {what_for}"
    old = _numbers(found) < _numbers(least)
    return (level, name, f"{found} is older than {least}; needed for {what_for}") if old else ("ok", name, found)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdecimal())
