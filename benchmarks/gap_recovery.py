"""How much of the gap to its teacher the quickstart's student recovers: over seeds, and where there is no gap to close.

    python -m benchmarks.gap_recovery [--seeds 0 1 2] [--folder opd-benchmark]

Each seed plays the whole quickstart as a user does (`opd quickstart`, its own pair, store and clock), then a control:
the same config with the starting student as its teacher, which has nothing to teach. Accuracies are read from the
store with SQL: 200 held-out problems x 4 answers for every model. Writes benchmarks/results/gap_recovery.json; exits 1
if a target is missed. About 6 minutes a seed on one core.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "gap_recovery.json"
CONFIG = Path(__file__).parents[1] / "pipeline/quickstart/quickstart.toml"
TARGETS = {"initial_gap_at_least": 0.3, "mean_recovery_at_least": 0.5, "each_recovery_at_least": 0.3,
           "control_moves_at_most": 0.05, "quickstart_seconds_at_most": 480}
ROUNDS = """SELECT round, evaluated, avg_at_k, start_avg_at_k, teacher_avg_at_k, gap_recovery, pass_at_k
            FROM rounds ORDER BY round"""
ENDS = "SELECT role, round, problems, k, avg_at_k, avg_at_k_low, avg_at_k_high, truncation_rate FROM accuracy"


def main() -> int:
    options = _options()
    seeds = [measure(seed, options.folder / f"seed-{seed}") for seed in options.seeds]
    found = verdicts(seeds)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"command": "python -m benchmarks.gap_recovery", "machine": machine(),
                                   "targets": TARGETS, "verdicts": found, "seeds": seeds}, indent=1) + "\n")
    for name, (figure, met) in found.items():
        print(f"{name:<28} {figure:>8.3f}  target {TARGETS[name]:<6} {'met' if met else 'MISSED'}")
    return 0 if all(met for _, met in found.values()) else 1


def measure(seed: int, folder: Path) -> dict:
    """The quickstart and its control for one seed."""
    pair = [f"student.path={folder}/quickstart-student", f"teacher.path={folder}/quickstart-teacher"]
    common = [f"store={folder}/store", f"seed={seed}"]
    seconds = opd("quickstart", "--report", folder / "reports", settings=[*common, *pair])
    control = [*common, "run=control", pair[0], f"teacher.path={folder}/quickstart-student"]
    control_seconds = opd("run", CONFIG, settings=control)
    rounds, unmoved = ask(folder, "quickstart", ROUNDS), ask(folder, "control", ROUNDS)
    last = rounds[-1]
    result = {
        "seed": seed, "quickstart_seconds": round(seconds, 1), "control_seconds": round(control_seconds, 1),
        "initial_gap": last["teacher_avg_at_k"] - last["start_avg_at_k"], "gap_recovery": last["gap_recovery"],
        "control_moved": unmoved[-1]["avg_at_k"] - unmoved[-1]["start_avg_at_k"],
        "rounds": rounds, "control": unmoved, "accuracy": ask(folder, "quickstart", ENDS)}
    print(f"seed {seed}: {last['start_avg_at_k']:.3f} -> {last['avg_at_k']:.3f}, teacher "
          f"{last['teacher_avg_at_k']:.3f}, recovery {last['gap_recovery']:.2f}, control moved "
          f"{result['control_moved']:+.3f}, {seconds:.0f} s", flush=True)
    return result


def verdicts(seeds: list[dict]) -> dict[str, tuple[float, bool]]:
    """Target -> (figure, whether it is met)."""
    recovered = [each["gap_recovery"] for each in seeds]
    figures = {
        "initial_gap_at_least": min(each["initial_gap"] for each in seeds),
        "mean_recovery_at_least": sum(recovered) / len(recovered), "each_recovery_at_least": min(recovered),
        "control_moves_at_most": max(abs(each["control_moved"]) for each in seeds),
        "quickstart_seconds_at_most": max(each["quickstart_seconds"] for each in seeds)}
    return {name: (figure, figure >= TARGETS[name] if name.endswith("at_least") else figure <= TARGETS[name])
            for name, figure in figures.items()}


def opd(verb: str, *arguments, settings: list[str]) -> float:
    """Run one command of the command line; returns its seconds."""
    command = [sys.executable, "-m", "flows.cli", verb, *map(str, arguments)]
    start = time.monotonic()
    subprocess.run([*command, *(part for each in settings for part in ("--set", each))], check=True,
                   stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def ask(folder: Path, run: str, sql: str) -> list[dict]:
    command = [sys.executable, "-m", "flows.cli", "sql", sql, "--run", run, "--store", str(folder / "store"), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def machine() -> dict:
    """What it ran on; versions are in every run's run.json."""
    return {"cores": os.cpu_count(), "architecture": platform.machine(), "python": platform.python_version()}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gap_recovery", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("opd-benchmark"), help="models and stores are kept here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
