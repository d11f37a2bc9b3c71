"""Where everything lies: the only module that knows the store's keys.

    store.json                                        marks a folder or bucket prefix as a store
    run=<id>/run.json                                 resolved config, versions, fingerprints
    run=<id>/round=<n>/plan.json                      shards, their prompt ids and seeds
    run=<id>/round=<n>/<table>/part-<i>-<sha12>.parquet
    run=<id>/round=<n>/receipts/<stage>-<i>.json      names the one file of this shard
    run=<id>/round=<n>/<stage>.json                   the stage's commit
    run=<id>/round=<n>/manifest.json                  the round; the sha256 of its bytes is the round's id
    run=<id>/round=<n>/timings/<stage>-<i>.json       durations; never hashed
    run=<id>/round=<n>/claims/<stage>-<i>/<beat>.json who is at work on a shard; gone when the stage is finished
    run=<id>/round=<n>/claims/worker-<i>/<beat>.json  who is there to work
    run=<id>/checkpoint=<n>/<sha12>/                  the student that starts round n, named by its files' hash
    run=<id>/head/<sha12>/                            the teacher's output head, where its hidden states are kept

Keys are relative to the store's root, use forward slashes, and are built here from validated parts only.
"""

import re

from storage.errors import UserError

STORE_MARKER = "store.json"
STAGES = ("prompts", "rollout", "score", "hidden", "continuation", "mask", "train", "evaluate")
"""The stages of a round, in their order. Each has receipts and a commit; one that a plan gives no shards has an empty
commit."""

WORKER = "worker"
"""Stands for a stage in the claims: a worker's claim on its own number shows that it lives."""

RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TABLE_FOLDERS = {"prompts": "prompts", "rollouts": "rollouts", "tokens": "tokens/scores={scores}", "hidden": "hidden",
                  "continuation": "continuation", "mask": "mask", "steps": "train/steps", "evaluation": "evaluation"}


def check_run_id(run: str) -> str:
    """Return `run` if it is a clean run id; raise UserError otherwise."""
    if not RUN_ID.fullmatch(run) or ".." in run:
        raise UserError(f"run id {run!r} is not clean: use 1 to 64 of a-z 0-9 . _ - and start with a letter or digit")
    return run


def run_prefix(run: str) -> str:
    return f"run={check_run_id(run)}/"


def run_json(run: str) -> str:
    return run_prefix(run) + "run.json"


def round_prefix(run: str, number: int) -> str:
    return f"{run_prefix(run)}round={int(number)}/"


def plan(run: str, number: int) -> str:
    return round_prefix(run, number) + "plan.json"


def manifest(run: str, number: int) -> str:
    return round_prefix(run, number) + "manifest.json"


def stage_commit(run: str, number: int, stage: str) -> str:
    return f"{round_prefix(run, number)}{_stage(stage)}.json"


def receipts_prefix(run: str, number: int, stage: str) -> str:
    return f"{round_prefix(run, number)}receipts/{_stage(stage)}-"


def receipt(run: str, number: int, stage: str, shard: int) -> str:
    return f"{receipts_prefix(run, number, stage)}{int(shard)}.json"


def timing(run: str, number: int, stage: str, shard: int) -> str:
    return f"{round_prefix(run, number)}timings/{_stage(stage)}-{int(shard)}.json"


def claims_prefix(run: str, number: int) -> str:
    return f"{round_prefix(run, number)}claims/"


def claim(run: str, number: int, stage: str, shard: int, beat: int) -> str:
    folder = stage if stage == WORKER else _stage(stage)
    return f"{claims_prefix(run, number)}{folder}-{int(shard)}/{int(beat)}.json"


def shard(run: str, number: int, table: str, index: int, sha256: str, scores: str | None = None) -> str:
    """Key of a shard file; `scores` is the 8-digit scoring key, for the table `tokens` only."""
    folder = _TABLE_FOLDERS[table].format(scores=scores)
    return f"{round_prefix(run, number)}{folder}/part-{int(index)}-{sha256[:12]}.parquet"


def checkpoint_prefix(run: str, number: int, content: str) -> str:
    """Folder of the student that starts round `number`; `content` is the hash of all its files."""
    return f"{run_prefix(run)}checkpoint={int(number)}/{content[:12]}/"


def head_prefix(run: str, content: str) -> str:
    """Folder of the teacher's output head; `content` is the hash of all its files."""
    return f"{run_prefix(run)}head/{content[:12]}/"


def _stage(stage: str) -> str:
    assert stage in STAGES, stage
    return stage
