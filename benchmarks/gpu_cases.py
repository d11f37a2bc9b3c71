"""The process of benchmarks/gpu.py that runs the cases: each once, and what it found is on disk before the next."""

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

from benchmarks.gpu import STICKY, UNTIL_S, read
from benchmarks.gpu_figures import Figure


def work(options: argparse.Namespace) -> int:
    """Run what is not done yet. 2 where there is no such device, STICKY once the device is of no more use."""
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no GPU here; run on a machine with one, or with --device cpu --tiny", file=sys.stderr)
        return 2
    from benchmarks import gpu_plain

    without_pydantic = gpu_plain.provide()
    from benchmarks import gpu_checks, gpu_models, gpu_support_head
    from benchmarks.gpu_tools import Bench

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # the kernels that a stage runs (pipeline/stages.py)
    sections = {"checks": gpu_checks.cases, "support head": gpu_support_head.cases,
                "scoring": gpu_models.scoring_cases, "training": gpu_models.training_cases}
    book = Book(options.out, options.started)
    bench = Bench(torch.device(options.device), options.tiny, book.content["details"])
    book.content.setdefault("machine", machine(torch, options.device, without_pydantic))
    for section in options.only:
        for name, case in sections[section](bench):
            if name in book.content["done"]:
                continue
            if time.time() - options.started > UNTIL_S[section]:
                book.enter(name, [Figure(name, None, "", note="(the section's time was up)")], None, 0)
                continue
            book.begin(section, name)
            start = time.time()
            figures, failure = attempt(case)
            held = "" if not bench.gpu else f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB at most"
            book.enter(name, figures, failure, time.time() - start)
            print(*(figure.line() for figure in figures), f"({time.time() - start:.1f} s{held})", sep="\n", flush=True)
            if failure and not alive(bench):
                return STICKY
            bench.free()
    return 0


class Book:
    """What was found so far, as JSON."""

    def __init__(self, file: Path, started: float):
        self.file, self.started = file, started
        self.content = {"figures": [], "failures": {}, "done": [], "details": {}, "seconds": {}, **read(file)}

    def begin(self, section: str, name: str) -> None:
        print(f"\n[{time.time() - self.started:4.0f} s] {section}: {name}", flush=True)
        self._write(running={"case": name, "since": time.time()})

    def enter(self, name: str, figures: list[Figure], failure: str | None, seconds: float) -> None:
        self.content["figures"] += [figure.row() for figure in figures]
        self.content["done"].append(name)
        self.content["seconds"][name] = round(seconds, 1)
        if failure:
            self.content["failures"][name] = failure
        self._write(running=None)

    def _write(self, **changes) -> None:
        self.content.update(changes)
        part = self.file.with_name(self.file.name + ".part")
        part.write_text(json.dumps(self.content, indent=1))
        part.replace(self.file)


def attempt(case) -> tuple[list, str | None]:
    """(figures, None), or ([], traceback). Anything may fail on a GPU nobody has tried: the others still count."""
    try:
        return case(), None
    except Exception:
        said = traceback.format_exc()
        print(said, flush=True)
        return [], said


def alive(bench) -> bool:
    """Whether the device still answers: after an illegal access nothing on it does, until the process ends."""
    try:
        bench.wait()
    except Exception as error:
        print(f"the device does not answer any more: {error}", flush=True)
        return False
    return True


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
