"""Where the seconds of a round go, and how they grow with what a round holds:

    python -m benchmarks.stages [--pair FOLDER]      (3 minutes on two cores)

Plays rounds of a run as `opd run` does and prints, for the second one, seconds per stage: what the stage says it took
(compute, with loading its models), and what goes by around it (its process, commits). Then, for small rounds:

- growth with shards: the same prompts in 1, 2, 4 and 8 shards; a line of least squares gives the seconds per shard
- growth with tokens: 1, 2, 4 and 8 rollouts per prompt; seconds per 1000 response tokens beside the fixed part

The breakdown is that of the quickstart's pair on generated sums (--pair: the folder with quickstart-student and
quickstart-teacher), else of tiny models. Targets: what is not a stage is under 5 % of a quickstart round; a shard costs
under 0.5 s.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import Target, finish
from benchmarks.rounds import quiet, stopwatch
from flows import local
from pipeline.config import RunConfig, load_config
from storage.layout import STAGES
from storage.objects import open_store
from storage.rounds import Round
from tests.tiny import make_tiny

ROOT = Path(__file__).parents[1]
STEPS = (1, 2, 4, 8)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__.split("\n")[0])
    parser.add_argument("--pair", type=Path, default=Path("opd-models"),
                        help="folder with quickstart-student and quickstart-teacher (default: ./opd-models)")
    arguments = parser.parse_args()
    has_pair = arguments.pair.is_dir()
    with tempfile.TemporaryDirectory(prefix="opd-stages-") as folder:
        place = Path(folder)
        breakdown = played(quickstart(place, arguments.pair) if has_pair else small(place / "tiny", rounds=2))
        shards = [played(small(place / f"shards-{count}", per_shard=8 // count)) for count in STEPS]
        tokens = [played(small(place / f"samples-{count}", samples=count)) for count in STEPS]
    result = {"breakdown": breakdown, "models": "quickstart" if has_pair else "tiny",
              "growth_with_shards": line([each["shards"] for each in shards], shards),
              "growth_with_tokens": line([each["tokens"] / 1000 for each in tokens], tokens)}
    show(result)
    outside = 1 - sum(breakdown["within_s"].values()) / breakdown["round_s"]
    return finish("stages", result, [
        Target("time outside of stages, share of a quickstart round", outside if has_pair else None, 0.05,
               at_most=True),
        Target("what one more shard costs a round, s", result["growth_with_shards"]["per_unit_s"], 0.5, at_most=True)])


def played(config: RunConfig) -> dict:
    """The last round of a run: seconds in all, by stage within and around, its response tokens and shards."""
    with stopwatch() as seconds, stages_timed() as by_stage, contextlib.redirect_stderr(open(os.devnull, "w")):
        local.distill(config, quiet)
    round = Round(open_store(config.store), config.run, len(seconds) - 1)
    within = {stage: sum(each["seconds"] for each in round.timings() if each["stage"] == stage) for stage in STAGES}
    return {"round_s": seconds[-1], "within_s": {stage: s for stage, s in within.items() if s},
            "around_s": {stage: s - within[stage] for stage, s in by_stage.items()},
            "tokens": sum(receipt.facts["response_tokens"] for receipt in round.receipts("rollout")),
            "shards": sum(len(round.shard_indices(stage)) for stage in STAGES)}


@contextlib.contextmanager
def stages_timed():
    """Seconds of each stage of the round that is played last, its process included."""
    original, by_stage = local.play_shards, {}

    def timed(where, work, *arguments):
        start = time.perf_counter()
        done = original(where, work, *arguments)
        by_stage[work.stages[0]] = time.perf_counter() - start
        return done

    local.play_shards = timed
    try:
        yield by_stage
    finally:
        local.play_shards = original


def line(places: list[float], rounds: list[dict]) -> dict:
    """Least squares of a round's seconds over `places`."""
    seconds = [each["round_s"] for each in rounds]
    slope, fixed = np.polyfit(places, seconds, 1)
    return {"at": places, "round_s": seconds, "per_unit_s": float(slope), "fixed_s": float(fixed)}


def show(result: dict) -> None:
    breakdown = result["breakdown"]
    print(f"{'stage':<14}{'within, s':>12}{'around, s':>12}{'share':>9}   ({result['models']} models, "
          f"{breakdown['tokens']} response tokens)")
    for stage, seconds in breakdown["within_s"].items():
        around = breakdown["around_s"].get(stage, 0.0)
        print(f"{stage:<14}{seconds:>12.3f}{around:>12.3f}{(seconds + around) / breakdown['round_s']:>9.1%}")
    print(f"{'round':<14}{breakdown['round_s']:>12.3f}")
    for name, unit in (("shards", "shard"), ("tokens", "1000 tokens")):
        grown = result[f"growth_with_{name}"]
        print(f"growth with {name}: {grown['fixed_s']:.2f} s + {grown['per_unit_s']:.3f} s per {unit}; at "
              + ", ".join(f"{at:g}: {s:.2f} s" for at, s in zip(grown["at"], grown["round_s"])))


def quickstart(folder: Path, pair: Path) -> RunConfig:
    """Two rounds of the quickstart."""
    models = [f"{side}.path={pair / f'quickstart-{side}'}" for side in ("student", "teacher")]
    return load_config(ROOT / "pipeline/quickstart/quickstart.toml", [*models, f"store={folder / 'store'}", "rounds=2"])


def small(folder: Path, per_shard: int = 8, samples: int = 2, rounds: int = 1) -> RunConfig:
    """Eight prompts to the tiny pair."""
    folder.mkdir(parents=True)
    settings = {"rounds": rounds, "prompts.per_shard": per_shard, "rollout.samples": samples,
                "rollout.max_new_tokens": 64}
    with contextlib.redirect_stderr(open(os.devnull, "w")):
        return load_config(make_tiny(folder, **settings))


if __name__ == "__main__":
    sys.exit(main())
