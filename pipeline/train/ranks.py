"""One of several processes that train on a round together: what torchrun starts.

    torchrun --standalone --nproc-per-node 8 -m pipeline.train.ranks R --round 3 --store ./opd-store

finishes the train stage of round 3, as `opd train --run R --round 3` does with train.ranks = 8. Over several machines
with a shared store, the same command on each of them (here 2 of 8 GPUs, the first one reachable as node0):

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint node0:29500 --rdzv-id opd \\
        -m pipeline.train.ranks R --store s3://bucket/opd

Without --round it is the run's first that is not committed: what `opd run --leave-training` stopped at.
Every rank reads the round's shards; rank 0 alone reads the checkpoint, and puts the next one. The number of ranks is
torchrun's, whatever train.ranks says: it changes nothing but rounding. nccl on GPUs, one per rank, gloo elsewhere.

`--out FOLDER` is how the stage itself starts it: nothing is put into the store, and rank 0 leaves the checkpoint, the
steps and the facts in FOLDER; errors lie there too, one file per rank. A rank ends when the process that started it
does.
"""

import argparse
import json
import os
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path

PARENT_S = 0.5
"""Seconds between looks at whether the parent is there."""


def main(arguments: list[str] | None = None) -> None:
    """Train; leaves with 0, with 2 for a mistake that a person can mend, with 1 for anything else."""
    asked = _arguments(arguments)
    if asked.out:
        threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    try:
        _train(asked)
    except Exception as error:  # told to whoever started the ranks, who decides
        _tell(error, asked.out)
        code = 2 if isinstance(error, ValueError) else 1
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not sys.exit: taking the process group down waits for ranks that may be gone


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipeline.train.ranks", allow_abbrev=False)
    parser.add_argument("run")  # a word: torchrun takes --run for an option of its own
    parser.add_argument("--round", type=int, help="default: the one that is not committed")
    parser.add_argument("--store", required=True)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def _train(asked: argparse.Namespace) -> None:
    from storage.errors import UserError

    if "RANK" not in os.environ:
        raise UserError("python -m pipeline.train.ranks is what torchrun starts: torchrun --standalone "
                        "--nproc-per-node 8 -m pipeline.train.ranks RUN --round N --store S")
    import torch
    import torch.distributed as dist

    from pipeline.context import open_context
    from pipeline.stages import commit_finished, prepare_process
    from pipeline.train.launch import check_devices
    from pipeline.train.parallel import Ranks
    from pipeline.train.session import train_round
    from pipeline.train.stage import check_inputs, finish
    from storage.objects import open_store
    from storage.rounds import committed_rounds

    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    check_devices(here)
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    progress = _progress(asked.out) if asked.out and local == 0 else lambda what, done, total: None
    number = len(committed_rounds(open_store(asked.store), asked.run)) if asked.round is None else asked.round
    context = open_context(asked.store, asked.run, number, progress)
    prepare_process(context.config.threads and max(1, context.config.threads // here))
    if not asked.out:
        check_inputs(context)
        if context.round.receipt("train", 0):
            return
    # rank 0 alone reads and writes checkpoints, for longer than NCCL's 10 minutes; the agent sees ranks that died
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1),
                            **({"device_id": device} if device.type == "cuda" else {}))
    ranks = Ranks(device)
    trained = train_round(context, ranks)
    if asked.out:
        _leave(trained, ranks, asked.out)
    elif finish(context, trained):
        commit_finished(context.round, "train")
    dist.barrier()


def _leave(trained, ranks, out: Path) -> None:
    from storage.codec import encode

    folder = out / "checkpoint"
    if ranks.rank == 0:
        folder.mkdir()
    trained.write_checkpoint(folder)
    if ranks.rank == 0:
        (out / "steps.parquet").write_bytes(encode(trained.steps))
        (out / "trained.json").write_text(json.dumps({"facts": trained.facts, "inputs": trained.inputs()}))


def _progress(out: Path):
    def progress(what: str, done: int, total: int) -> None:
        part = out / "progress.part"
        part.write_text(json.dumps([what, done, total]))
        part.replace(out / "progress.json")

    return progress


def _tell(error: Exception, out: Path | None) -> None:
    from storage.errors import OpdError

    line = " ".join(str(error).split())
    line = line if isinstance(error, OpdError) else f"{type(error).__name__}: {line}"
    if out is None:
        print(f"opd: {line}", file=sys.stderr)
        return
    names = [each.__name__ for each in type(error).__mro__]
    (out / f"error-{os.environ.get('RANK', 'x')}.json").write_text(
        json.dumps({"classes": names, "line": line, "trace": traceback.format_exc()}))


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_S)
    os._exit(1)


if __name__ == "__main__":
    main()
