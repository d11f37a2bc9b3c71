"""Training on a round by train.ranks processes of this machine, started and watched by torchrun's agent.

Promises: nothing is put into the store before all ranks are done; a rank that fails ends the others, and its one line
is raised here; ranks end when this process does.
"""

import json
import logging
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from pipeline.context import RoundContext
from storage import schemas
from storage.codec import decode
from storage.errors import ConfigError, IntegrityError, OpdError, UserError

START = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from pipeline.train.ranks import main; main()"
"""With this process's import path, so that a rank finds the same code, also a custom objective's."""
PROGRESS_S = 0.5
FAMILIES = {each.__name__: each for each in (ConfigError, UserError, IntegrityError, OpdError)}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Those that the agent takes over while it runs."""


@dataclass(frozen=True)
class TrainedByRanks:
    """What rank 0 left in a scratch folder."""

    scratch: tempfile.TemporaryDirectory
    steps: pa.Table
    facts: dict
    files: dict[str, str]
    first = True

    def write_checkpoint(self, folder: Path) -> None:
        """Move the checkpoint into an empty folder; once."""
        for path in sorted((Path(self.scratch.name) / "checkpoint").iterdir()):
            shutil.move(path, folder / path.name)

    def inputs(self) -> dict[str, str]:
        """Key and sha256 of every file that training read."""
        return self.files


def check_devices(ranks: int) -> None:
    """Raise UserError unless this machine has a GPU for each rank, or none at all, where ranks share its cores."""
    check_gpus(ranks, torch.cuda.device_count() if torch.cuda.is_available() else 0)


def check_gpus(ranks: int, gpus: int) -> None:
    if 0 < gpus < ranks:
        raise UserError(f"train.ranks = {ranks} needs {ranks} GPUs and this machine has {gpus}: set train.ranks = "
                        f"{gpus}, or start the stage on several machines with torchrun (pipeline/train/ranks.py)")


def train_on_ranks(context: RoundContext) -> TrainedByRanks:
    """Start the ranks, wait for all of them. Raises what one of them raised, OpdError if one died."""
    check_devices(context.config.train.ranks)
    scratch = tempfile.TemporaryDirectory(prefix="opd-ranks-")
    out = Path(scratch.name)
    with _shown(out, context.progress), _own_signals():
        _launch(context, out)
    left = json.loads((out / "trained.json").read_bytes())
    return TrainedByRanks(scratch, decode(out / "steps.parquet", schemas.STEPS), left["facts"], left["inputs"])


def _launch(context: RoundContext, out: Path) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it tells a failure over 30 lines
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=context.config.train.ranks, max_restarts=0,
                          rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost",
                          run_id=out.name, logs_specs=DefaultLogsSpecs(str(out / "logs"), redirects=Std.ALL))
    command = ["-c", START, json.dumps(sys.path), context.run, "--round", str(context.number),
               "--store", context.config.store, "--out", str(out)]
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        raise _reason(out, error) from None


def _reason(out: Path, error) -> Exception:
    """The mistake that a rank found, before how a rank died, before what others said that lost it."""
    told = [json.loads(path.read_bytes()) for path in sorted(out.glob("error-*.json"))]
    for each in told:
        family = next((FAMILIES[name] for name in each["classes"] if name in FAMILIES), None)
        if family:
            return family(each["line"])
    killed = {rank: each for rank, each in error.failures.items() if each.exitcode not in (1, -signal.SIGTERM)}
    rank, failure = min((killed or error.failures).items())  # the agent ends the others with SIGTERM
    line = "it was killed, or ran out of memory" if failure.exitcode < 0 else (told[0]["line"] if told
                                                                               else _last_line(out))
    return OpdError(f"train: rank {rank} died (exit code {failure.exitcode}): {line}; nothing was written, run the "
                    "same command again")


def _last_line(out: Path) -> str:
    for path in sorted(out.glob("logs/**/stderr.log")):
        lines = path.read_text(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        if said:
            return said[-1][:200]
    return "it said nothing"


@contextmanager
def _shown(out: Path, progress: Callable[[str, int, int], None]) -> Iterator[None]:
    """Pass on what rank 0 says about how far it is, its last word included."""
    done, file = threading.Event(), out / "progress.json"

    def watch():
        shown, over = None, False
        while not over:
            over = done.wait(PROGRESS_S)
            now = json.loads(file.read_bytes()) if file.exists() else None
            if now != shown:
                shown = now
                progress(*now)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Give the signals back that the agent takes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
