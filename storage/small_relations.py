"""The relations `raw.*` that are no shards: rows from the snapshot itself, small enough to compute when asked for."""

import json

import pyarrow as pa

from storage import relations
from storage.rounds import Round
from storage.snapshot import Snapshot
from storage.vocabulary import SCHEMA as VOCABULARY
from storage.vocabulary import vocabulary

_STAGE_OF_TABLE = {"prompts": "prompts", "rollouts": "rollout", "tokens": "score", "hidden": "hidden",
                   "continuation": "continuation", "mask": "mask", "steps": "train", "evaluation": "evaluate"}
_ROUNDS = pa.schema([("run", pa.string()), ("round", pa.int32()), ("committed", pa.bool_()),
                     ("manifest_id", pa.string()), ("owner", pa.string())])
_SHARDS = pa.schema([("run", pa.string()), ("round", pa.int32()), ("stage", pa.string()), ("shard", pa.int32()),
                     ("table_name", pa.string()), ("key", pa.string()), ("rows", pa.int64()),
                     ("size_bytes", pa.int64()), ("sha256", pa.string()), ("committed", pa.bool_())])
_TIMINGS = pa.schema([("run", pa.string()), ("round", pa.int32()), ("stage", pa.string()), ("shard", pa.int32()),
                      ("seconds", pa.float64()), ("rows", pa.int64()), ("host", pa.string()),
                      ("details", pa.string())])

_CLOSING = {"positions": pa.int64(), "teacher_kl": pa.float64(), "student_entropy": pa.float64(),
            "student_mass": pa.float64(), "drift": pa.float64(), "ess": pa.float64(), "topk_left": pa.float64(),
            "opd_reverse_kl": pa.float64()}
_TRAININGS = pa.schema([("run", pa.string()), ("round", pa.int32()), ("steps", pa.int64()), ("run_steps", pa.int64()),
                        ("stopped", pa.string()), *((f"closing_{name}", kind) for name, kind in _CLOSING.items())])


def _rounds(snapshot: Snapshot) -> pa.Table:
    manifests = [(run, number, snapshot.manifest(run, number)) for run, number, _ in snapshot.rounds()]
    return pa.Table.from_pylist(
        [{"run": run, "round": number, "committed": manifest is not None,
          "manifest_id": manifest.id if manifest else None, "owner": manifest.run if manifest else run}
         for run, number, manifest in manifests], _ROUNDS)


def _shards(snapshot: Snapshot) -> pa.Table:
    return pa.Table.from_pylist(
        [{"run": run, "round": number, "stage": _STAGE_OF_TABLE.get(file.table, file.table),
          "shard": relations.place(file.key).shard, "table_name": file.table, "key": file.key, "rows": file.rows,
          "size_bytes": file.size, "sha256": file.sha256, "committed": committed}
         for run, number, committed in snapshot.rounds() for table in relations.TABLES
         for file in snapshot.files(run, number, table)], _SHARDS)


def _timings(snapshot: Snapshot) -> pa.Table:
    rows = [{"run": run, "round": number, **timing} for run, number, _ in snapshot.rounds()
            for timing in Round(snapshot.store, run, number).timings()]
    known = set(_TIMINGS.names)
    return pa.Table.from_pylist(
        [{**row, "details": json.dumps({name: value for name, value in row.items() if name not in known},
                                       sort_keys=True)} for row in rows], _TIMINGS)


def _trainings(snapshot: Snapshot) -> pa.Table:
    """Facts of the train receipts; what a receipt does not say is null."""
    rows = []
    for run, number, _ in snapshot.rounds():
        for receipt in Round(snapshot.store, run, number).receipts("train"):
            facts = receipt.facts
            closing = facts.get("closing") or {}
            rows.append({"run": run, "round": number, **{name: facts.get(name) for name in _TRAININGS.names[2:5]},
                         **{f"closing_{name}": closing.get(name) for name in _CLOSING}})
    return pa.Table.from_pylist(rows, _TRAININGS)


SMALL = {"rounds": (_ROUNDS, _rounds), "shards": (_SHARDS, _shards), "timings": (_TIMINGS, _timings),
         "trainings": (_TRAININGS, _trainings), "vocabulary": (VOCABULARY, vocabulary)}
"""Name -> its columns, and what computes its rows from a snapshot."""
