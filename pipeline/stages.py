"""Running one shard of one stage: what the commands `opd rollout`, `opd score`, ... and the flows have in common.

A stage needs the receipts of what it reads, and a shard that has a receipt is never computed again. Whoever finds a
stage complete commits it.
"""

import importlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from pipeline.context import RoundContext
from storage.errors import MissingObject, UserError
from storage.layout import STAGES
from storage.rounds import Manifest, Receipt, Round, StageCommit, committed_rounds, read_run

NEEDS_SHARD = {"rollout": "prompts", "score": "rollout", "hidden": "rollout"}
"""A shard of the key reads the same shard of the value."""
NEEDS_ALL = {"continuation": "rollout", "mask": "score", "train": "mask", "evaluate": "train"}
"""The key reads every shard of the value: the detector and SQL masks see a whole round. A round is evaluated last."""

ROOM = {"rollout": "rollout.engine.batch_size", "continuation": "rollout.engine.batch_size",
        "evaluate": "rollout.engine.batch_size", "score": "score.batch_tokens or score.head_rows",
        "hidden": "score.batch_tokens"}
"""What bounds a stage's memory on the device. Training says it itself (pipeline/train/trainer.py)."""
UNASKED = {
    "hidden": "its config has no score.teacher_hidden_states; `opd rescore` adds them to a past round",
    "continuation": "its config has no [continuation], or asks for it in other rounds",
    "evaluate": "its config has no [evaluation], or asks for it in other rounds; `opd evaluate --model` grades any "
                "model",
}
"""Why a stage may have nothing to do."""


def check_round(round: Round) -> None:
    """Raise UserError if there is no such run, or the round is not the next one or an earlier one."""
    try:
        read_run(round.store, round.run)
    except MissingObject:
        raise UserError(f"run {round.run} is not in the store {round.store.url}: start it with `opd start CONFIG` or "
                        "`opd run CONFIG`") from None
    done = len(committed_rounds(round.store, round.run))
    if not 0 <= round.number <= done:
        raise UserError(f"round {round.number} of {round.run} cannot be worked on: {done} rounds are committed, so the "
                        f"next is round {done}")


def plan(context: RoundContext) -> None:
    """Write the round's plan, unless it is there. A branch's first round has its parent's."""
    branch = context.document["branch"]
    if branch and branch["round"] == context.number:
        importlib.import_module("pipeline.replay.branch").complete(context)
    elif not context.round.planned():
        importlib.import_module("pipeline.prompts.stage").plan_round(context)


def run_shard(context: RoundContext, stage: str, shard: int) -> Receipt:
    """Compute `shard` of `stage`, unless it has a receipt. Raises UserError if its inputs are not there."""
    return begin_shard(context, stage, shard)()


def begin_shard(context: RoundContext, stage: str, shard: int) -> Callable[[], Receipt]:
    """Do of a shard what nothing else may run beside; what is returned finishes it, in a thread of its own if need be,
    while the next shard is begun. A stage without `begin` leaves nothing to finish.

    A shard's `seconds` in timings/ are those of its own work, without what it waited to be finished; the last
    `finishing_s` of them may have been another shard's as well.
    """
    if done := context.round.receipt(stage, shard):
        return lambda: done
    _check_inputs(context.round, stage, shard)
    module = importlib.import_module(f"pipeline.{stage}.stage")  # the stages' names are the rooms' names
    start = time.perf_counter()
    context.notes.clear()
    with _advice(stage, shard):
        if not hasattr(module, "begin"):
            receipt = module.run(context, shard)
            _note(context, receipt, time.perf_counter() - start, context.notes)
            return lambda: receipt
        finish = module.begin(context, shard)
    return partial(_finish, context, finish, time.perf_counter() - start, dict(context.notes))


@contextmanager
def _advice(stage: str, shard: int) -> Iterator[None]:
    """Raise UserError, one line that says what to lower, where the device has no room for a stage of ROOM."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" or stage not in ROOM:  # torch's; not imported here
            raise
        said = ". ".join(str(error).split(". ")[:2])
        raise UserError(f"{stage} {shard}: {said}; lower {ROOM[stage]}, what is finished is kept") from error


def _finish(context: RoundContext, finish: Callable[[], Receipt], begun_s: float, notes: dict) -> Receipt:
    start = time.perf_counter()
    receipt = finish()
    finishing_s = time.perf_counter() - start
    _note(context, receipt, begun_s + finishing_s, {**notes, "finishing_s": finishing_s})
    return receipt


def _note(context: RoundContext, receipt: Receipt, seconds: float, notes: dict) -> None:
    context.round.note_timing(receipt.stage, receipt.shard, {
        "seconds": seconds, "rows": receipt.file.rows, "host": platform.node(), "pid": os.getpid(), **notes})


def commit_if_complete(round: Round, stage: str) -> StageCommit | None:
    """Commit `stage` once no shard of it is pending."""
    return None if round.pending(stage) else round.commit_stage(stage)


def commit_round(round: Round) -> Manifest:
    """Commit every complete stage, then the round."""
    for stage in STAGES:
        if not round.stage_committed(stage):
            round.commit_stage(stage)
    return round.commit()


def commit_finished(round: Round, stage: str) -> bool:
    """Commit `stage` if it is complete, and the round once every stage is. Returns whether the stage is."""
    complete = commit_if_complete(round, stage) is not None
    if complete and not any(round.pending(each) for each in STAGES):
        commit_round(round)
    return complete


def prepare_process(threads: int | None) -> None:
    """Make this process compute the same bits every time: fixed threads, deterministic kernels."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)


def check_shard(round: Round, stage: str, shard: int | None = None) -> None:
    """Raise UserError if the round has no plan, or no such shard."""
    if not round.planned():
        raise UserError(f"round {round.number} of {round.run} has no plan: run `opd prompts --run {round.run} "
                        f"--round {round.number}` first")
    shards = round.shard_indices(stage)
    if not shards:
        raise UserError(f"round {round.number} of {round.run} has no shard of {stage}: {UNASKED[stage]}")
    if shard is not None and shard not in shards:
        raise UserError(f"{stage} of round {round.number} has no shard {shard}: it has 0 to {len(shards) - 1}")


def _check_inputs(round: Round, stage: str, shard: int) -> None:
    check_shard(round, stage, shard)
    earlier = NEEDS_SHARD.get(stage)
    if earlier and not round.receipt(earlier, shard):
        raise UserError(_missing(round, stage, earlier, f"shard {shard} of "))
    earlier = NEEDS_ALL.get(stage)
    if earlier and round.pending(earlier):
        raise UserError(_missing(round, stage, earlier, "all shards of "))


def _missing(round: Round, stage: str, earlier: str, what: str) -> str:
    return (f"{stage} of round {round.number} needs {what}{earlier}, which has not finished: run "
            f"`opd {earlier} --run {round.run} --round {round.number}` first")
