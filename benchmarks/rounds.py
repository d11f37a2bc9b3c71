"""The fixed cost of a round, and whether it grows with the rounds before it:

    python -m benchmarks.rounds [--rounds 200] [--prefect 200]      (8 minutes on two cores)

Plays a run of 200 small rounds as `opd run` does (tiny models, 4 prompts, one shard per stage), and one of 200 through
a Prefect server of its own. The models are so small that computing takes next to nothing, so the whole wall time of
such a round is an upper bound of its fixed cost: processes, Prefect, loading, hashing, commits. It is printed beside
the part that is spent outside of the stages. With the quickstart's pair (--pair FOLDER, the folder with
quickstart-student and quickstart-teacher) and OPD_DATA_DIR, a round of examples/gsm8k.toml is played too, and one on
the same models and data with next to nothing to compute: that one is all fixed cost, model loading included.

No slope, over rounds 50 to the last: the line whose slope is the median of all pairwise ones (Theil-Sen, which a pause
of the machine does not move) rises by under 5 % of the mean from its first to its last round. A machine shared with
others drifts by 10 % within minutes, so a round of a young run is played after each, and seconds and CPU are divided by
how slow the young rounds around were. Through Prefect, where none can be played in between, the seconds outside of the
stages are divided by how slow the stages around were: without Prefect these do not slow down with a run's age.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import combinations, count
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.report import Target, finish
from flows import local
from flows.child import Child
from flows.local import distill_round
from flows.team import Team
from pipeline.config import RunConfig, load_config
from storage.objects import open_store
from storage.rounds import Round
from tests.flows.processes import descendants, stage_children
from tests.tiny import make_tiny

ROOT = Path(__file__).parents[1]
SMALL = {"prompts.per_round": 4, "prompts.per_shard": 4, "rollout.max_new_tokens": 8}
FROM = 50
"""The round at which the slopes begin: caches and allocators have settled."""
RISE = 0.05
AGE = 20
"""Rounds after which the young run beside the old one begins anew."""
LIMIT_S = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounds", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--prefect", type=int, default=200, metavar="ROUNDS")
    parser.add_argument("--pair", type=Path, default=Path("opd-models"),
                        help="folder with quickstart-student and quickstart-teacher (default: ./opd-models)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="opd-rounds-") as folder:
        result = {"local": played_here(Path(folder) / "local", arguments.rounds)}
        if arguments.prefect:
            result["prefect"] = played_by_prefect(Path(folder) / "prefect", arguments.prefect)
        if arguments.pair.is_dir() and os.environ.get("OPD_DATA_DIR"):
            result["gsm8k"] = played_gsm8k(Path(folder) / "gsm8k", arguments.pair)
    for name, figures in result.items():
        shown = (f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, float | int))
        print(name, *shown, sep="\n  ")
    return finish("rounds", result, targets(result))


def targets(result: dict) -> list[Target]:
    here, prefect, gsm8k = (result.get(name, {}) for name in ("local", "prefect", "gsm8k"))
    return [
        Target("fixed cost of a small round, s", here["round_s"], LIMIT_S, at_most=True),
        Target("fixed cost of a small round through Prefect, s", prefect.get("round_s"), LIMIT_S, at_most=True),
        *(Target(f"{what}: rise over rounds {FROM} to the last, share of the mean", here.get(f"{what}_rise"), RISE,
                 at_most=True) for what in ("seconds", "cpu", "parent_rss", "child_rss")),
        *(Target(f"{what} through Prefect: rise over rounds {FROM} to the last, share of the mean",
                 prefect.get(f"{what}_rise"), RISE, at_most=True) for what in ("seconds", "rss")),
        Target("fixed cost of a GSM8K round, share of it", gsm8k.get("share"), 0.05, at_most=True),
    ]


def played_here(folder: Path, rounds: int) -> dict:
    """A run without Prefect: seconds and memory of each round."""
    config, begun = small(folder / "old", rounds), time.perf_counter()
    parent, child, spent, young, apart = [], [], [], [], 0.0

    def remember() -> None:
        nonlocal apart
        parent.append(resident_mb(os.getpid()))
        child.append(max(map(resident_mb, stage_children(os.getpid())), default=0.0))
        until = all_cpu_seconds()
        spent.append(until - apart)
        young.append(next(beside))
        apart += all_cpu_seconds() - until

    with contextlib.closing(young_rounds(folder / "young")) as beside, stopwatch(remember) as seconds:
        local.distill(config, quiet)
    figures = {"rounds": rounds, "total_s": time.perf_counter() - begun, **split(config, seconds)}
    cpu = np.diff(spent, prepend=spent[0]).tolist()
    slow = slowness(young)
    for name, values, by in (("seconds", seconds, slow), ("cpu", cpu, slow), ("parent_rss", parent, 1),
                             ("child_rss", child, 1), ("young", young, 1)):
        figures[f"{name}_rise"] = rise((np.asarray(values) / by).tolist()[FROM:])
        figures[f"{name}_of_rounds"] = [round(value, 4) for value in values]
    return figures | {"cpu_s": median(cpu[1:]), "parent_rss_mb": parent[-1], "child_rss_mb": child[-1]}


def young_rounds(folder: Path) -> Iterator[float]:
    """Seconds of rounds of runs that are never older than AGE, in processes and stores of their own: what a young round
    takes at the same time on the same machine."""
    for begun in count():
        config = small(folder / str(begun), AGE)
        with Child() as child:
            child.call("start", quiet(""), config=config.model_dump(mode="json"))
        with Team(config.workers) as team:
            for number in range(AGE):
                start = time.perf_counter()
                distill_round(config.store, config.run, number, quiet, team)
                yield time.perf_counter() - start


def slowness(young: list[float]) -> np.ndarray:
    """How slow the machine was beside each round, 1 on average: the median of the 21 young rounds around it."""
    around = [median(young[max(0, at - 10):at + 11]) for at in range(len(young))]
    return np.asarray(around) / np.mean(around)


@contextlib.contextmanager
def stopwatch(after=lambda: None):
    """Seconds of every round that is played here; `after` is called after each."""
    original, seconds = local.distill_round, []

    def timed(*arguments):
        start = time.perf_counter()
        done = original(*arguments)
        seconds.append(time.perf_counter() - start)
        after()
        return done

    local.distill_round = timed
    try:
        yield seconds
    finally:
        local.distill_round = original


def quiet(title: str):
    return lambda what, done, total: None


def split(config: RunConfig, seconds: list[float]) -> dict:
    """Medians over rounds: a whole one, what its stages say they took, and the rest."""
    within = stage_seconds(config, len(seconds))
    return {"round_s": median(seconds[1:]), "within_stages_s": median(within[1:]),
            "outside_of_stages_s": median([whole - inner for whole, inner in zip(seconds, within)][1:])}


def stage_seconds(config: RunConfig, rounds: int) -> list[float]:
    """What the stages of each of the first rounds say they took."""
    store = open_store(config.store)
    return [sum(each["seconds"] for each in Round(store, config.run, number).timings()) for number in range(rounds)]


def rise(values: list[float]) -> float | None:
    """By what share of their mean the values rise from the first to the last along the Theil-Sen line; None for too
    few."""
    if len(values) < 20:
        return None
    slope = median((values[j] - values[i]) / (j - i) for i, j in combinations(range(len(values)), 2))
    return slope * (len(values) - 1) / float(np.mean(values))


def played_by_prefect(folder: Path, rounds: int) -> dict:
    """A run through Prefect: from the start of one round's flow run to that of the next, as the server has them, and
    the memory of `opd run`."""
    from tests.flows.prefect_server import prefect_server

    config, memory = small(folder, rounds), []
    with prefect_server(folder / "home") as server, (folder / "log").open("w+") as log:
        server.opd("doctor", "--fix")
        playing = subprocess.Popen(server.command("run", folder / "config.toml"), env=server.environment, stdout=log,
                                   stderr=log)
        while playing.poll() is None:
            memory.append(resident_mb(playing.pid))
            time.sleep(1)
        assert playing.returncode == 0, (folder / "log").read_text()
        runs = [server.flow_runs(f"{config.run} round {number}")[0] for number in range(rounds)]
    starts = [np.datetime64(each["start_time"].rstrip("Z")).astype("datetime64[ms]").astype(int) / 1e3 for each in runs]
    seconds, within = np.diff(starts), np.asarray(stage_seconds(config, rounds - 1))
    outside = (seconds - within) / slowness(within.tolist())
    settled = memory[len(memory) * FROM // rounds:]
    return {"rounds": rounds, **split(config, seconds.tolist()), "slowest_s": float(seconds.max()),
            "seconds_rise": rise((outside + within.mean()).tolist()[FROM:]), "rss_rise": rise(settled),
            "rss_mb": settled[-1], "seconds_of_rounds": seconds.round(3).tolist(),
            "within_stages_of_rounds": within.round(3).tolist(), "rss_of_seconds": memory}


def played_gsm8k(folder: Path, pair: Path) -> dict:
    """The second round of the GSM8K example, and what of it is fixed: a second round with next to nothing to compute,
    on the same models and data (one prompt, one rollout, one new token, one held-out problem)."""
    folder.mkdir(parents=True)
    settings = [f"{side}.path={pair / f'quickstart-{side}'}" for side in ("student", "teacher")]
    example = load_config(ROOT / "examples/gsm8k.toml", [*settings, f"store={folder / 'store'}", "rounds=2"])
    least = example.model_dump(mode="json") | {"run": "least"}
    least["prompts"]["per_round"] = least["rollout"]["samples"] = least["rollout"]["max_new_tokens"] = 1
    least["evaluation"]["benchmark"][0]["source"]["limit"] = 1
    whole, fixed = (second_round_s(config) for config in (example, RunConfig.model_validate(least)))
    return {"round_s": whole, "fixed_s": fixed, "share": fixed / whole}


def second_round_s(config: RunConfig) -> float:
    with stopwatch() as seconds:
        local.distill(config, quiet)
    return seconds[1]


def small(folder: Path, rounds: int) -> RunConfig:
    folder.mkdir(parents=True)
    with contextlib.redirect_stderr(open(os.devnull, "w")):
        return load_config(make_tiny(folder, rounds=rounds, **SMALL))


def resident_mb(pid: int) -> float:
    """Memory of a process, in MiB."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0


def all_cpu_seconds() -> float:
    """Of this process and all that it has started."""
    return sum(map(cpu_seconds, (os.getpid(), *descendants(os.getpid()))))


def cpu_seconds(pid: int) -> float:
    """What a process and its ended children have computed: other than the clock, it does not count who else was at
    work on the machine."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
