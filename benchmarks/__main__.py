"""Every benchmark that needs no GPU, each in a process of its own; at the end the targets of all of them again.

    python -m benchmarks [NAME ...]          (what `make bench` runs)

Exit code 1 if a target was missed or a benchmark failed.
"""

import os
import subprocess
import sys

from benchmarks.report import LINE

ALL = ["support_head", "scorer", "trainer", "cache_layout", "rounds", "vllm_rollouts", "stages",
       "answer_checker"]
NEEDS_DATA = {"answer_checker"}


def main(names: list[str]) -> int:
    asked = names or [name for name in ALL if name not in NEEDS_DATA or os.environ.get("OPD_DATA_DIR")]
    lines, failed = [], 0
    for name in asked:
        print(f"\n=== {name}", flush=True)
        code, said = _play(name)
        lines += [line for line in said if LINE.match(line)]
        failed += code != 0
    print("\n=== targets", *lines, sep="\n")
    return int(failed > 0)


def _play(name: str) -> tuple[int, list[str]]:
    """Run a benchmark, its output passed on as it comes."""
    process = subprocess.Popen([sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True)
    said = []
    for line in process.stdout:
        print(line, end="", flush=True)
        said.append(line.rstrip())
    return process.wait(), said


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
