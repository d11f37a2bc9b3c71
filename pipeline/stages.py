"""Running one shard of one stage: what the commands `opd rollout`, `opd score`, ... and the flows have in common.

A stage needs the receipts of what it reads, and a shard that has a receipt is never computed again. Whoever finds a
stage complete commits it.
"""

import importlib
import os
import platform
import time

from pipeline.context import RoundContext
from storage.errors import MissingObject, UserError
from storage.layout import STAGES
from storage.rounds import Manifest, Receipt, Round, StageCommit, committed_rounds, read_run

NEEDS_SHARD = {"rollout": "prompts", "score": "rollout", "hidden": "rollout"}
"""A shard of the key reads the same shard of the value."""
NEEDS_ALL = {"continuation": "rollout", "mask": "score", "train": "mask", "evaluate": "train"}
"""The key reads every shard of the value: the detector and SQL masks see a whole round. A round is evaluated last."""


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
    done = context.round.receipt(stage, shard)
    if done:
        return done
    _check_inputs(context.round, stage, shard)
    module = importlib.import_module(f"pipeline.{stage}.stage")  # the stages' names are the rooms' names
    start = time.perf_counter()
    context.notes.clear()
    receipt = module.run(context, shard)
    context.round.note_timing(stage, shard, {"seconds": time.perf_counter() - start, "rows": receipt.file.rows,
                                             "host": platform.node(), "pid": os.getpid(), **context.notes})
    return receipt


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
