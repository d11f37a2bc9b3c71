"""A round of a run: the commit protocol. This module is what stages and flows use; it also names the rest of it.

    plan.json -> shards + receipts of a stage -> <stage>.json -> ... -> manifest.json

Each step is one `put_if_absent`, so every race has one winner and everybody reads the winner's. A stage's result
counts when its receipt lies there: resuming is the plan minus the receipts, and nothing else is looked at. A loser
of a race leaves a shard that no receipt names. Documents are functions of the work done: no clock, no host; those go
to timings/, which is never hashed.

The manifest is put last. Its byte copy is put into the output checkpoint just before: both are the same function of
what is committed already, so whoever finishes the round writes the same bytes.
"""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from storage import documents, layout
from storage.checkpoints import ROUND_COPY, local_checkpoint, put_checkpoint, starting_checkpoint
from storage.errors import IntegrityError, MissingObject, UserError
from storage.objects import ObjectStore, exists
from storage.records import (
    CheckpointFiles,
    ContinuationShard,
    EvaluationShard,
    Manifest,
    Plan,
    PlanShard,
    Receipt,
    ShardFile,
    StageCommit,
    StoredFile,
    pack,
    unpack,
)
from storage.runs import (
    beginnings,
    committed_rounds,
    create_run,
    first_own_round,
    list_runs,
    owner,
    parent_manifest,
    read_manifest,
    read_run,
    run_sha256,
)
from storage.shards import put_shard, read_shard

__all__ = [
    "CheckpointFiles", "ContinuationShard", "EvaluationShard", "Manifest", "Plan", "PlanShard", "Receipt", "Round",
    "ShardFile", "StageCommit", "StoredFile", "beginnings", "committed_rounds", "create_run", "first_own_round",
    "list_runs", "local_checkpoint", "owner", "parent_manifest", "put_checkpoint", "read_manifest", "read_run",
    "starting_checkpoint",
]


class Round:
    """Round `number` of `run`; of a branch's first rounds, where its parent keeps them.

    Cheap to make; remembers the plan and the receipts it has read, which never change.
    """

    def __init__(self, store: ObjectStore, run: str, number: int):
        self.store, self.run, self.number = store, owner(store, layout.check_run_id(run), number), number
        self._plan: Plan | None = None
        self._receipts: dict[str, tuple[Receipt, str]] = {}

    # --- plan ---

    def planned(self) -> bool:
        """Whether plan.json lies there."""
        return self._plan is not None or exists(self.store, self._plan_key)

    def put_plan(self, plan: Plan) -> Plan:
        """Put the plan; returns the one that counts, which may be another worker's."""
        assert plan.round == self.number and [shard.index for shard in plan.shards] == list(range(len(plan.shards)))
        self.store.put_if_absent(self._plan_key, pack("plan", self.run, self.number, plan))
        return self.plan()

    def plan(self) -> Plan:
        """The plan. Raises MissingObject before it is put."""
        if self._plan is None:
            key = self._plan_key
            self._plan = unpack(Plan, "plan", self.run, self.number, self.store.get(key), key)
        return self._plan

    def shard_indices(self, stage: str) -> list[int]:
        """Shards of a stage, as planned; `train` has one shard, and needs no plan to say so."""
        return [0] if stage == "train" else self.plan().shard_indices(stage)

    # --- shards and receipts ---

    def receipt(self, stage: str, shard: int) -> Receipt | None:
        """The receipt that counts, None if the shard is not finished."""
        found = self._receipt(stage, shard)
        return found[0] if found else None

    def receipts(self, stage: str) -> list[Receipt]:
        """Receipts of the finished shards, by shard."""
        found = (self.receipt(stage, shard) for shard in self.shard_indices(stage))
        return [receipt for receipt in found if receipt]

    def pending(self, stage: str) -> list[int]:
        """Shards without a receipt: what is left to do. One listing, however many shards: on S3 each receipt that is
        not there would be two requests."""
        keys = {shard: self._receipt_key(stage, shard) for shard in self.shard_indices(stage)}
        if self._receipts.keys() >= set(keys.values()):
            return []
        there = {info.key for info in self.store.list(layout.receipts_prefix(self.run, self.number, stage))}
        return [shard for shard, key in keys.items() if key not in there]

    def finish(self, stage: str, shard: int, table_name: str, table: pa.Table, *, inputs: dict[str, str],
               facts: dict[str, Any] | None = None, scores: str | None = None,
               checkpoint: CheckpointFiles | None = None, head: CheckpointFiles | None = None) -> Receipt:
        """Put a shard's file, then its receipt. Returns the receipt that counts, which may be another worker's.

        `inputs` maps the keys of what it was computed from to their sha256 (`input_files` helps), `facts` holds
        counts that are a function of the work alone, `scores` is the 8-digit scoring key for the table `tokens`,
        `checkpoint` the output of `train`, `head` the teacher's head beside `hidden`.
        """
        assert shard in self.shard_indices(stage), (stage, shard)
        assert (checkpoint is not None) == (stage == "train"), "train, and only train, ends with a checkpoint"
        done = self.receipt(stage, shard)
        if done:
            return done
        file = put_shard(self.store, self.run, self.number, table_name, shard, table, scores)
        receipt = Receipt(stage, shard, file, dict(inputs), facts or {}, checkpoint, head)
        self.store.put_if_absent(self._receipt_key(stage, shard), pack("receipt", self.run, self.number, receipt))
        counts = self.receipt(stage, shard)
        assert counts is not None
        return counts

    def share(self, receipt: Receipt) -> Receipt:
        """Finish a shard with what another round of the store computed: its receipt, naming its file. The file is not
        copied. Returns the receipt that counts."""
        key = self._receipt_key(receipt.stage, receipt.shard)
        self.store.put_if_absent(key, pack("receipt", self.run, self.number, receipt))
        counts = self.receipt(receipt.stage, receipt.shard)
        assert counts is not None
        return counts

    def input_files(self, stage: str, shard: int | None = None) -> dict[str, str]:
        """Key -> sha256 of the files of a stage (of one shard): for `inputs` of what is computed from them."""
        return {receipt.file.key: receipt.file.sha256 for receipt in self._finished(stage, shard)}

    def read(self, stage: str, shard: int | None = None, columns: Iterable[str] | None = None) -> pa.Table:
        """Rows of a stage's table, of one shard or of all in order; sizes and hashes checked once per process.

        Raises UserError if a shard is not finished, IntegrityError for damaged bytes.
        """
        columns = None if columns is None else list(columns)
        tables = [read_shard(self.store, receipt.file, columns) for receipt in self._finished(stage, shard)]
        return pa.concat_tables(tables)

    # --- commits ---

    def commit_stage(self, stage: str, facts: dict[str, Any] | None = None) -> StageCommit:
        """Put <stage>.json once every shard has its receipt; returns the one that counts."""
        self._finished(stage, None)
        found = [(self._receipt_key(stage, shard), self._receipt(stage, shard)) for shard in self.shard_indices(stage)]
        commit = StageCommit(stage, {key: sha256 for key, (_, sha256) in found}, facts or {})
        self.store.put_if_absent(self._stage_key(stage), pack("stage", self.run, self.number, commit))
        return self.stage_commit(stage)

    def stage_committed(self, stage: str) -> bool:
        return exists(self.store, self._stage_key(stage))

    def stage_commit(self, stage: str) -> StageCommit:
        """The commit of a stage. Raises MissingObject before it is put."""
        key = self._stage_key(stage)
        commit = unpack(StageCommit, "stage", self.run, self.number, self.store.get(key), key)
        if commit.stage != stage:
            raise IntegrityError(f"{key} is foreign: it is the commit of {commit.stage}", "foreign")
        return commit

    def commit(self) -> Manifest:
        """Put the round's manifest, and its copy into the output checkpoint. May be called again at any time."""
        data = pack("manifest", self.run, self.number, self._build_manifest())
        prefix = self._checkpoint_out().prefix
        self.store.put_if_absent(prefix + ROUND_COPY, data)
        self.store.put_if_absent(layout.manifest(self.run, self.number), data)
        manifest = self.manifest()
        assert manifest is not None
        return manifest

    def manifest(self) -> Manifest | None:
        """The manifest, None until the round is committed."""
        return read_manifest(self.store, self.run, self.number)

    def _build_manifest(self) -> Manifest:
        missing = [stage for stage in layout.STAGES if not self.stage_committed(stage)]
        if missing:
            raise UserError(f"round {self.number} of {self.run} cannot be committed: {', '.join(missing)} not finished")
        receipts = [receipt for stage in layout.STAGES for receipt in self.receipts(stage)]
        return Manifest(
            run=self.run, round=self.number, run_json=run_sha256(self.store, self.run),
            plan=documents.sha256(self.store.get(self._plan_key)),
            stages={stage: documents.sha256(self.store.get(self._stage_key(stage))) for stage in layout.STAGES},
            files=[receipt.file for receipt in receipts], parent=parent_manifest(self.store, self.run, self.number),
            checkpoint_in=starting_checkpoint(self.store, self.run, self.number),
            checkpoint_out=self._checkpoint_out())

    def _checkpoint_out(self) -> CheckpointFiles:
        checkpoint = self._finished("train", 0)[0].checkpoint
        assert checkpoint is not None
        return checkpoint

    # --- timings ---

    def note_timing(self, stage: str, shard: int, timing: dict[str, Any]) -> None:
        """Put durations, rates, hosts of a shard; never hashed, the first one stays."""
        self.store.put_if_absent(layout.timing(self.run, self.number, stage, shard), documents.dump(timing))

    def timings(self) -> list[dict[str, Any]]:
        """What was noted, with `stage` and `shard`."""
        keys = {(stage, shard): layout.timing(self.run, self.number, stage, shard)
                for stage in layout.STAGES for shard in self.shard_indices(stage)}
        found = {place: (key, self._bytes(key)) for place, key in keys.items()}
        return [{**documents.load(data, key), "stage": stage, "shard": shard}
                for (stage, shard), (key, data) in found.items() if data is not None]

    # --- keys and bytes ---

    @property
    def _plan_key(self) -> str:
        return layout.plan(self.run, self.number)

    def _receipt_key(self, stage: str, shard: int) -> str:
        return layout.receipt(self.run, self.number, stage, shard)

    def _stage_key(self, stage: str) -> str:
        return layout.stage_commit(self.run, self.number, stage)

    def _receipt(self, stage: str, shard: int) -> tuple[Receipt, str] | None:
        key = self._receipt_key(stage, shard)
        if key not in self._receipts:
            data = self._bytes(key)
            if data is None:
                return None
            receipt = unpack(Receipt, "receipt", self.run, self.number, data, key)
            if (receipt.stage, receipt.shard) != (stage, shard):
                raise IntegrityError(f"{key} is foreign: it is the receipt of {receipt.stage} {receipt.shard}",
                                     "foreign")
            self._receipts[key] = receipt, documents.sha256(data)
        return self._receipts[key]

    def _finished(self, stage: str, shard: int | None) -> list[Receipt]:
        wanted = self.shard_indices(stage) if shard is None else [shard]
        receipts = [self.receipt(stage, each) for each in wanted]
        missing = [str(each) for each, receipt in zip(wanted, receipts) if receipt is None]
        if missing:
            raise UserError(f"{stage} of round {self.number} of {self.run} is not finished: shards "
                            f"{', '.join(missing[:10])} of {len(self.shard_indices(stage))} are pending; run "
                            f"`opd {stage} --run {self.run} --round {self.number}`")
        return receipts

    def _bytes(self, key: str) -> bytes | None:
        try:
            return self.store.get(key)
        except MissingObject:
            return None

