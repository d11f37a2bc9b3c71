"""Every check and benchmark that needs a GPU, on one GPU, in under 8 minutes:

    PYTHONPATH=. python benchmarks/gpu.py                    (about 60 GB of GPU memory for the 7B shape)
    PYTHONPATH=. python benchmarks/gpu.py --device cpu --tiny     (all of it at toy sizes, without a GPU)

Needs torch, transformers and pyarrow, with Triton as it comes with torch; no other package, no network, no weights.
Models have random weights at the shapes of Qwen2.5 0.5B, 1.5B and 7B. Sections are checks (against slow dense
references), the support head (against dense, chunked dense and, if installed, Liger), scoring and training; each has
its share of the time, and what it does not reach is `not measured`. A case that fails is reported with its traceback,
and the others go on. Ends with a table of name, figure, target and verdict; writes benchmarks/results/gpu.json, with
--tiny only where --out says. Exits 1 if a target was missed or a case failed.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "gpu.json"
BUDGET_S = {"checks": 80, "support head": 130, "scoring": 120, "training": 110}
"""Seconds in which a section starts new cases: 440 of 480."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu.py", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: whether everything runs, not how fast")
    parser.add_argument("--only", choices=BUDGET_S, nargs="+", default=list(BUDGET_S), help="these sections")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    return run(options)


def run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    if options.device == "cpu" and not options.tiny:
        print("error: --device cpu is for --tiny: at full size a CPU takes hours; add --tiny", file=sys.stderr)
        return 2
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no GPU here; run on a machine with one, or with --device cpu --tiny", file=sys.stderr)
        return 2
    from benchmarks import gpu_plain

    without_pydantic = gpu_plain.provide()
    from benchmarks import gpu_checks, gpu_models, gpu_support_head
    from benchmarks.gpu_tools import Bench, Figure

    bench = Bench(torch.device(options.device), options.tiny)
    sections = {"checks": gpu_checks.cases, "support head": gpu_support_head.cases,
                "scoring": gpu_models.scoring_cases, "training": gpu_models.training_cases}
    figures, failures = [], {}
    for section in options.only:
        print(f"\n=== {section}", flush=True)
        deadline = time.monotonic() + BUDGET_S[section]
        for name, case in sections[section](bench):
            if time.monotonic() > deadline:
                figures.append(Figure(name, None, "", note="(the section's time was up)"))
                continue
            found, failures[name] = measure(case)
            figures += found
            bench.free()
            print("\n".join(figure.line() for figure in found), flush=True)
    failures = {name: said for name, said in failures.items() if said}
    wall = time.monotonic() - started
    figures.append(Figure("the whole script", wall, "s", 480, True))
    write(options, bench, figures, failures, machine(torch, options.device, without_pydantic))
    print("\n=== table\n" + "\n".join(figure.line() for figure in figures))
    for name, said in failures.items():
        print(f"{name:<74} {'-':>10} {'':<14} {'':<9} failed: {said.splitlines()[-1]}")
    return int(bool(failures) or any(figure.verdict == "missed" for figure in figures))


def measure(case) -> tuple[list, str | None]:
    """(figures, None), or ([], traceback). Anything may fail on a GPU nobody has tried: the others still count."""
    start = time.monotonic()
    try:
        return case(), None
    except Exception:
        said = traceback.format_exc()
        print(f"{said}(after {time.monotonic() - start:.0f} s)", flush=True)
        return [], said


def machine(torch, device: str, without_pydantic: bool) -> dict:
    import transformers

    found = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
             "architecture": platform.machine(), "pydantic": "stand-in" if without_pydantic else "installed"}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "memory_gb": properties.total_memory / 1e9, "cuda": torch.version.cuda,
                  "multiprocessors": properties.multi_processor_count, "driver": driver()}
    return found


def driver() -> str | None:
    """The driver's version; None where nvidia-smi is not there."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip().split("\n")[0] or None


def write(options: argparse.Namespace, bench, figures: list, failures: dict, described: dict) -> None:
    out = options.out or (None if options.tiny else RESULTS)
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"name": each.name, "value": each.value, "unit": each.unit, "limit": each.limit, "at_most": each.at_most,
             "verdict": each.verdict, "note": each.note} for each in figures]
    content = {"command": "python benchmarks/gpu.py", "machine": described, "figures": rows, "failures": failures,
               "details": bench.notes}
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
