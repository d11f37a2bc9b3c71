"""Every check and benchmark that needs a GPU, on one GPU, in under 8 minutes:

    python benchmarks/gpu.py                           (about 60 GB of GPU memory for the 7B shape)
    python benchmarks/gpu.py --device cpu --tiny       (all of it at toy sizes, without a GPU)

Needs torch, transformers and pyarrow, with Triton as it comes with torch; no other package, no network, no weights.
Models have random weights at the shapes of Qwen2.5 0.5B, 1.5B and 7B. Sections are checks (against slow dense
references), the support head (against dense, chunked dense and, if installed, Liger), scoring and training.

The cases run in a process of their own, and what each found is written at once: to benchmarks/results/gpu.json, with
--tiny only where --out says; gpu.partial.json until the end. A case that fails is reported with its traceback, one that
breaks the device, kills the process or takes longer than CASE_S is reported too, and the rest goes on in a new process.
What was not reached when time was up is `not measured`. Ends with a table of name, figure, target and verdict, and the
line for pipeline/train/support/paths.py. Exits 1 if a target was missed or a case failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "gpu.json"
UNTIL_S = {"checks": 110, "support head": 250, "scoring": 340, "training": 430}
"""Seconds after the start until which a section begins new cases."""
LIMIT_S = 470
"""Seconds after the start at which what is still running is ended: 8 minutes, less the table."""
CASE_S = 120
STICKY = 3
"""Exit code of a process whose device is of no more use."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu.py", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: whether everything runs, not how fast")
    parser.add_argument("--only", choices=UNTIL_S, nargs="+", default=list(UNTIL_S), help="these sections")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)  # as the process that runs the cases
    options = parser.parse_args(arguments)
    if options.device == "cpu" and not options.tiny:
        print("error: --device cpu is for --tiny: at full size a CPU takes hours; add --tiny", file=sys.stderr)
        return 2
    sys.path[:] = [str(ROOT), *(each for each in sys.path if Path(each or ".").resolve() != ROOT / "benchmarks")]
    if options.started is None:
        options.out = options.out or (None if options.tiny else RESULTS)
        return supervise(options)
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    from benchmarks.gpu_cases import work

    return work(options)


def supervise(options: argparse.Namespace) -> int:
    """Run the cases in a process, and in a new one as often as that one is lost."""
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="opd-gpu-") as folder:
        partial = Path(folder) / "gpu.json"
        if options.out is not None:  # beside the results: it stays where this process is killed
            options.out.parent.mkdir(parents=True, exist_ok=True)
            partial = options.out.with_suffix(".partial.json")
            partial.unlink(missing_ok=True)
        code = cases(options, partial, started)
        return 2 if code == 2 else finish(options, partial, time.time() - started)


def cases(options: argparse.Namespace, partial: Path, started: float, script: Path = Path(__file__)) -> int:
    """Run `script` until every case is done, was lost, or time is up. 2 if it refuses."""
    command = [sys.executable, str(script.resolve()), "--device", options.device, "--only", *options.only,
               "--out", str(partial), "--started", str(started), *(["--tiny"] if options.tiny else [])]
    while True:
        child = subprocess.Popen(command)
        ended = watch(child, partial, started)
        running = read(partial).get("running")
        if child.returncode in (0, 2):
            return child.returncode
        if running is not None:
            lost(partial, running["case"], ended or f"its process left with code {child.returncode}")
        elif child.returncode != STICKY:
            lost(partial, "the process of the cases", ended or f"it left with code {child.returncode}")
            return 1
        if time.time() - started > LIMIT_S:
            return 1
        print("--- the rest goes on in a new process", flush=True)


def watch(child: subprocess.Popen, partial: Path, started: float) -> str | None:
    """Wait for the process; end it once its case or everything takes too long, and return why."""
    while child.poll() is None:
        time.sleep(0.2)
        running = read(partial).get("running")
        late = running is not None and time.time() - running["since"] > CASE_S
        if late or time.time() - started > LIMIT_S:
            child.kill()
            child.wait()
            return f"ended after {CASE_S} s" if late else f"ended {LIMIT_S} s after the start"
    return None


def lost(partial: Path, case: str, why: str) -> None:
    print(f"--- {case}: {why}", flush=True)
    content = read(partial)
    content.update(running=None, failures={**content.get("failures", {}), case: why})
    content["done"] = [*content.get("done", []), case]
    partial.write_text(json.dumps(content))


def read(partial: Path) -> dict:
    return json.loads(partial.read_text()) if partial.exists() else {}


def finish(options: argparse.Namespace, partial: Path, wall_s: float) -> int:
    """The table, the JSON and the exit code."""
    from benchmarks.gpu_figures import Figure

    content = read(partial)
    figures = [Figure(**{name: row[name] for name in ("name", "value", "unit", "limit", "at_most", "note")})
               for row in content.get("figures", [])]
    figures.append(Figure("the whole script", wall_s, "s", 480, True))
    failures = content.get("failures", {})
    result = {"command": "python benchmarks/gpu.py", "machine": content.get("machine"),
              "figures": [figure.row() for figure in figures], "failures": failures,
              "details": content.get("details", {}), "seconds": content.get("seconds", {})}
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        partial.unlink(missing_ok=True)
    print("\n=== table\n" + "\n".join(figure.line() for figure in figures))
    for name, said in failures.items():
        print(f"{name:<74} {'-':>10} {'':<14} {'':<9} failed: {said.strip().splitlines()[-1]}")
    if "paste" in result["details"]:
        print(f"\n=== for MEASURED in pipeline/train/support/paths.py\n{result['details']['paste']}")
    return int(bool(failures) or any(figure.verdict == "missed" for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
