"""What each objective makes of the quickstart: one round replayed, and whole runs from the start, over three seeds.

    python -m benchmarks.presets replay --folder opd-benchmark     # one round of seed 0's run, 10 presets x 3 seeds
    python -m benchmarks.presets runs --folder opd-benchmark       # 6 rounds each, 10 presets x 3 seeds, own pairs
    python -m benchmarks.presets table                             # both results as a table

`replay` is one command, `opd replay quickstart --round 0 --sweep`: every branch trains on the same cached shards, so
seeds are orders of training. `runs` are runs of their own with `opd run`: rollouts, too, are each preset's and seed's.
Every preset has the quickstart's learning rate, mask and number of updates; sampled_token_masked has the detector
besides. The drift fuse is off: a collapse is to be seen, not prevented. Accuracy is that of 200 held-out problems x 4
answers, read with SQL like everything else. Writes benchmarks/results/presets_{replay,runs}.json. Nothing here is a
target: what comes out is reported. About 20 and 60 minutes on one core.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

from benchmarks.gap_recovery import machine

RESULTS = Path(__file__).parent / "results"
CONFIG = Path(__file__).parents[1] / "pipeline/quickstart/quickstart.toml"
PRESETS = ("teacher_topk_lsm", "tail_bucket_topk", "forward_kl_topk", "gkd", "student_topk", "stop_gradient_topk",
           "truncated_topk", "sampled_token", "sampled_token_masked", "lightning")
NO_FUSE = "train.drift_fuse=1e9"
MASKED = ('mask=[{type = "sql", file = "settled"}, {type = "detector"}]',)
ROUNDS = """SELECT round, loss, accuracy, mean_gap, student_mass, student_entropy, teacher_entropy, overlap_ratio,
                   mean_length, truncation_rate, repeat_ratio, closing_teacher_kl, closing_student_entropy,
                   closing_student_mass, avg_at_k, start_avg_at_k, teacher_avg_at_k, gap_recovery
            FROM rounds ORDER BY round"""


def main() -> int:
    options = _options()
    {"replay": replay, "runs": runs, "table": lambda _: None}[options.part](options)
    for part in ("replay", "runs"):
        if (RESULTS / f"presets_{part}.json").exists():
            print_table(part, json.loads((RESULTS / f"presets_{part}.json").read_text()))
    return 0


def replay(options) -> None:
    """The first round of the quickstart of seed 0 under every preset."""
    folder = options.folder / "seed-0"
    opd("run", CONFIG, *_pair(folder), "--set", "rounds=1")
    start = time.monotonic()
    printed = opd("replay", "quickstart", "--round", 0, "--sweep", ",".join(options.presets), "--seeds",
                  ",".join(map(str, options.seeds)), "--set", NO_FUSE, "--store", folder / "store", "--out",
                  options.folder, "--json")
    found = json.loads(printed)
    _write("replay", options, {"seconds": round(time.monotonic() - start, 1), "rows": found["rows"]})


def runs(options) -> None:
    """Whole runs, two at a time at most: each is one thread."""
    asked = [(preset, seed) for seed in options.seeds for preset in options.presets]
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda each: run(options.folder / f"seed-{each[1]}", *each), asked))
    _write("runs", options, {"runs": rows})


def run(folder: Path, preset: str, seed: int) -> dict:
    """One run from the start."""
    name, start = preset.replace("_", "-"), time.monotonic()
    masks = MASKED if preset == "sampled_token_masked" else ()
    settings = [f"run={name}", f"seed={seed}", f"objective.type={preset}", "evaluation.every=6", NO_FUSE, *masks]
    opd("run", CONFIG, *_pair(folder), *(part for each in settings for part in ("--set", each)))
    rounds = json.loads(opd("sql", ROUNDS, "--run", name, "--store", folder / "store", "--json"))
    last = rounds[-1]
    print(f"{preset:<22} seed {seed}: {last['start_avg_at_k']:.3f} -> {last['avg_at_k']:.3f}, mass "
          f"{last['closing_student_mass']:.3f}, entropy {last['closing_student_entropy']:.3f}, KL "
          f"{last['closing_teacher_kl']:.3f}, {time.monotonic() - start:.0f} s", flush=True)
    return {"preset": preset, "seed": seed, "rounds": rounds}


def print_table(part: str, found: dict) -> None:
    """Means over seeds, a line per preset."""
    rows = found["rows"] if part == "replay" else [
        {"preset": each["preset"], **each["rounds"][-1]} for each in found["runs"]]
    print(f"\n{part}: means over seeds (accuracy from lowest to highest)")
    print(f"{'preset':<22}{'avg@k':>8}{'(range)':>16}{'KL':>8}{'entropy':>9}{'mass':>7}")
    for preset in dict.fromkeys(row["preset"] for row in rows):
        mine = [row for row in rows if row["preset"] == preset]
        accuracy = sorted(row["avg_at_k"] for row in mine)
        metrics = [_mean(mine, f"closing_{name}") for name in ("teacher_kl", "student_entropy", "student_mass")]
        print(f"{preset:<22}{mean(accuracy):>8.3f}{f'{accuracy[0]:.3f}-{accuracy[-1]:.3f}':>16}"
              f"{metrics[0]:>8}{metrics[1]:>9}{metrics[2]:>7}")


def _mean(rows: list[dict], name: str) -> str:
    values = [row[name] for row in rows if row[name] is not None]
    return f"{mean(values):.3f}" if values else "-"


def _pair(folder: Path) -> list:
    """Settings that put models and store into `folder`; the pair is made first where it is not there."""
    pair = [f"student.path={folder}/quickstart-student", f"teacher.path={folder}/quickstart-teacher",
            f"store={folder}/store"]
    return [part for each in pair for part in ("--set", each)]


def make_pair(folder: Path, seed: int) -> None:
    """The quickstart's models of a seed, as `opd quickstart` makes them."""
    from pipeline.context import silent
    from pipeline.quickstart.pair import make_pair
    from pipeline.stages import prepare_process

    prepare_process(1)
    make_pair(folder, seed, silent)


def opd(verb: str, *arguments) -> str:
    """Run one command of the command line; returns what it printed."""
    done = subprocess.run([sys.executable, "-m", "flows.cli", verb, *map(str, arguments)], capture_output=True,
                          text=True)
    if done.returncode:
        raise SystemExit(f"opd {verb}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def _write(part: str, options, content: dict) -> None:
    RESULTS.mkdir(exist_ok=True)
    command = f"python -m benchmarks.presets {part} --seeds {' '.join(map(str, options.seeds))}"
    (RESULTS / f"presets_{part}.json").write_text(
        json.dumps({"command": command, "machine": machine(), **content}, indent=1) + "\n")


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("replay", "runs", "table"))
    parser.add_argument("--folder", type=Path, default=Path("opd-benchmark"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; each takes one thread")
    options = parser.parse_args()
    if options.part != "table":
        for seed in options.seeds:
            make_pair(options.folder / f"seed-{seed}", seed)
    return options


if __name__ == "__main__":
    sys.exit(main())
