"""Payloads of the same tokens under the same teacher, found in every committed round of every run of the store.

A payload is known by (teacher_key, token_hash) and nothing else. What is opened on the way is decided by run.json
(teacher, grid, K), then by the plans: only shards that ask a prompt of this one. The same tokens under another prompt
id (the same text as part of another data set) are therefore not found. A round counts once its manifest lies there, and
only for what it scored itself: a branch's shared files are found where they were computed, and payloads that were
themselves reused where they came from. So `reused_from` always names the round whose teacher ran.

Another run's damage is that run's: what cannot be read here is computed again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.model import Score
from pipeline.kept import kept
from pipeline.score.by_vllm.unknown import known
from pipeline.score.payload import STORED_COLUMNS, Payload
from storage import layout
from storage.errors import IntegrityError, MissingObject
from storage.objects import ObjectStore
from storage.records import Receipt, ShardFile
from storage.rounds import Round, first_own_round, list_runs, read_run
from storage.shards import read_shard


@dataclass(frozen=True)
class _Source:
    """A committed round, which never changes."""

    round: Round
    manifest: str
    prompts: dict[int, frozenset[int]]
    """Shard -> its prompts."""


def find_payloads(store: ObjectStore, key: str, weights: str, settings: Score,
                  rollouts: pa.Table) -> dict[str, Payload]:
    """Token hash -> payload with at least K = settings.teacher_top_k entries, for those of `rollouts` that have one.

    `key` is the teacher_key, `weights` the teacher's fingerprint in run.json.
    """
    wanted: dict[int, set[str]] = {}
    for prompt, token_hash in zip(rollouts["prompt_id"].to_pylist(), rollouts["token_hash"].to_pylist()):
        wanted.setdefault(prompt, set()).add(token_hash)
    found: dict[str, Payload] = {}
    for source in _sources(store, weights, settings):
        for shard, prompts in source.prompts.items():
            hashes = {each for prompt in prompts & wanted.keys() for each in wanted[prompt]} - found.keys()
            if hashes:
                found |= _read_payloads(source, shard, key, settings, hashes)
    return found


def _sources(store: ObjectStore, weights: str, settings: Score) -> Iterator[_Source]:
    """Rounds worth looking into, the best ones first: k as large as ours, then the smallest K, which is cut least."""
    runs = []
    for run in list_runs(store):
        scored = _scored_with(store, run, weights)
        if scored and scored["grid"] == settings.grid and scored["teacher_top_k"] >= settings.teacher_top_k:
            runs.append((scored["student_top_k"] < settings.student_top_k, scored["teacher_top_k"], run))
    for _, _, run in sorted(runs):
        yield from _committed(store, run)


def _scored_with(store: ObjectStore, run: str, weights: str) -> dict[str, Any] | None:
    """[score] of a run with this teacher, None for other runs."""
    try:
        teacher, score = _run_facts(store, run)
    except (IntegrityError, MissingObject):
        return None
    return score if teacher == weights else None


def _committed(store: ObjectStore, run: str) -> Iterator[_Source]:
    """A run's own committed rounds, up to the first that cannot be read."""
    try:
        number = first_own_round(store, run)
        while True:
            yield _source(store, run, number)
            number += 1
    except (IntegrityError, MissingObject):
        return


@kept(most=1024)
def _run_facts(store: ObjectStore, run: str) -> tuple[str | None, dict[str, Any]]:
    """The teacher's fingerprint and [score] of run.json, which is put once."""
    document = read_run(store, run)
    return (document.get("teacher") or {}).get("fingerprint"), (document.get("config") or {}).get("score", {})


@kept(most=4096)
def _source(store: ObjectStore, run: str, number: int) -> _Source:
    """Raises MissingObject, which is not remembered, before the round is committed."""
    round = Round(store, run, number)
    manifest = round.manifest()
    if manifest is None:
        raise MissingObject(layout.manifest(run, number))
    return _Source(round, manifest.id, {shard.index: frozenset(shard.prompt_ids) for shard in round.plan().shards})


def _read_payloads(source: _Source, shard: int, key: str, settings: Score, hashes: set[str]) -> dict[str, Payload]:
    """Those of `hashes` that this shard's teacher scored."""
    round = source.round
    try:
        rollout, score = round.receipt("rollout", shard), round.receipt("score", shard)
        if rollout is None or score is None or not _is_own(score, round) or score.facts.get("teacher_key") != key:
            return {}
        hash_of = _wanted_rollouts(read_shard(round.store, rollout.file, ("rollout_id", "token_hash")), hashes)
        if not hash_of:
            return {}
        rows = read_shard(round.store, score.file, ("rollout_id", "reused_from", *STORED_COLUMNS))
    except (IntegrityError, MissingObject):
        return {}
    if rows["teacher_topk_ids"].type.list_size < settings.teacher_top_k:
        return {}
    partial = rows.schema.field("teacher_entropy").nullable
    return {hash_of[rollout_id]: Payload(source.manifest, score.file, columns, partial)
            for rollout_id, columns in _by_rollout(rows, list(hash_of))}


def _is_own(score: Receipt, round: Round) -> bool:
    return score.file.key.startswith(layout.round_prefix(round.run, round.number))


def _wanted_rollouts(rollouts: pa.Table, hashes: set[str]) -> dict[int, str]:
    pairs = zip(rollouts["rollout_id"].to_pylist(), rollouts["token_hash"].to_pylist())
    return {rollout_id: token_hash for rollout_id, token_hash in pairs if token_hash in hashes}


def _by_rollout(rows: pa.Table, wanted: list[int]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Every wanted rollout whose rows a teacher computed, with its part of STORED_COLUMNS; a rollout's rows are
    neighbours."""
    rows = rows.filter(pc.and_(pc.is_null(rows["reused_from"]), pc.is_in(rows["rollout_id"], pa.array(wanted))))
    rollout_N = rows["rollout_id"].to_numpy()
    columns = {name: _array(rows[name]) for name in STORED_COLUMNS}
    starts = np.flatnonzero(np.diff(rollout_N, prepend=-1)) if len(rollout_N) else rollout_N
    for start, end in zip(starts, [*starts[1:], len(rollout_N)]):
        yield int(rollout_N[start]), {name: values[start:end] for name, values in columns.items()}


def _array(column: pa.ChunkedArray) -> np.ndarray:
    return known(column)


def files_of(payloads: list[Payload]) -> dict[str, str]:
    """Key -> sha256 of the files that payloads lie in, for `inputs`."""
    files: dict[str, ShardFile] = {payload.file.key: payload.file for payload in payloads if payload.file}
    return {key: file.sha256 for key, file in sorted(files.items())}
