"""Verification: every committed byte against its hash, every link of the chain, every file named that is not right.

    opd verify

Read are run.json, plans, receipts, stage commits, manifests and their copies, all shards and all files of all
checkpoints and teachers' heads. Documents carry their own checksum, and each is named by the hash in the one above
it, so that a document that is whole but not the committed one is found too. Orphans (what no receipt names) are no
problem: they are what killed workers leave. What stays unseen: a rewriter of the newest manifest, of its copy and of
all that they name; to exclude that, keep the newest manifest's id elsewhere.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from storage import documents, layout
from storage.checkpoints import ROUND_COPY, starting_checkpoint
from storage.errors import IntegrityError, MissingObject, UserError
from storage.objects import ObjectStore
from storage.records import CheckpointFiles, Manifest, Plan, Receipt, ShardFile, StageCommit, StoredFile, unpack
from storage.runs import owner, read_run
from storage.shards import check_table, damage, file_sha256

Found = TypeVar("Found")
_ROUND = re.compile(r"round=(0|[1-9][0-9]{0,8})")
_CHECKPOINT = re.compile(r"checkpoint=(0|[1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Finding:
    """One file that is not what was committed. `kind` is one word, `problem` a sentence without the key.

    Kinds: missing, empty, truncated, longer, changed, unparseable, foreign, swapped, stale, duplicate, symlink,
    unclean.
    """

    key: str
    kind: str
    problem: str


def verify(store: ObjectStore, run: str | None = None) -> list[Finding]:
    """Check `run` with the runs that it branched off, or everything. Returns what is wrong, nothing if all is as it was
    committed."""
    folders = [name for name in store.folders() if name.startswith("run=")]
    if run is not None:
        if layout.run_prefix(run).rstrip("/") not in folders:
            raise UserError(f"run {run} is not in the store {store.url}: `opd verify` without --run checks all runs")
        folders = [f"run={each}" for each in _family(store, run)]
    findings: list[Finding] = []
    whole: set[tuple[str, str]] = set()
    for folder in folders:
        name = folder.removeprefix("run=")
        if layout.RUN_ID.fullmatch(name):
            findings += _Run(store, name, whole).check()
        else:
            findings.append(Finding(folder, "unclean", "is not the folder of a run: its name is not clean"))
    return findings


def _family(store: ObjectStore, run: str) -> list[str]:
    """A run and those that it has its first rounds from, as far as run.json can be read."""
    family = [run]
    while True:
        try:
            branch = read_run(store, family[-1]).get("branch")
        except (IntegrityError, MissingObject):  # which the check of that run tells
            return family
        if not branch or branch["run"] in family:
            return family
        family.append(branch["run"])


class _Round:
    """What could be read of one round."""

    def __init__(self, number: int):
        self.number = number
        self.plan: Plan | None = None
        self.manifest: Manifest | None = None
        self.commits: dict[str, StageCommit] = {}
        self.receipts: dict[str, Receipt] = {}
        """By key."""


class _Run:
    """One run's check: documents first, then the links between them, then the files they name."""

    def __init__(self, store: ObjectStore, run: str, whole: set[tuple[str, str]]):
        self.store, self.run = store, run
        self.whole = whole
        """(key, sha256) of files that were found whole: a branch names its parent's, which are not read twice."""
        self.found: dict[str, Finding] = {}
        """The first problem of every key: what follows from it is not repeated."""
        self.hashes: dict[str, str] = {}
        """sha256 of the documents that were read, by key."""
        self.counted: dict[str, str] = {}
        """sha256 of the shards and checkpoint files that a document names, by key."""

    def check(self) -> list[Finding]:
        document = self._read(layout.run_json(self.run), lambda data: _whole_run(self.store, self.run))
        rounds = [self._read_round(number) for number in self._numbers()]
        by_number = {round.number: round for round in rounds}
        shards = self._shards(rounds)
        checkpoints = {each.prefix: each for each in _checkpoints(rounds, document)}
        stored = {file.key: file for checkpoint in checkpoints.values() for file in checkpoint.files}
        self.counted = {key: file.sha256 for key, file in [*shards.items(), *stored.items()]}
        first = ((document or {}).get("branch") or {}).get("round", 0)
        for round in rounds:
            if round.number < first:
                self._add(layout.round_prefix(self.run, round.number), "foreign",
                          f"is foreign: {self.run} has its own rounds from {first} on, and this one from its parent")
            previous = by_number.get(round.number - 1, _Round(round.number - 1)) if round.number != first else None
            self._check_links(round, previous, document)
        self._check_copies()
        for checkpoint in checkpoints.values():
            self._check_planted(checkpoint)
        self._check_files([*shards.values(), *stored.values()])
        return list(self.found.values())

    def _numbers(self) -> list[int]:
        names = self.store.folders(layout.run_prefix(self.run))
        return sorted(int(match[1]) for match in map(_ROUND.fullmatch, names) if match)

    # --- documents ---

    def _read_round(self, number: int) -> _Round:
        round = _Round(number)
        round.manifest = self._record(Manifest, "manifest", number, layout.manifest(self.run, number), needed=False)
        committed = round.manifest is not None
        round.plan = self._record(Plan, "plan", number, layout.plan(self.run, number), needed=committed)
        for stage in layout.STAGES:
            key = layout.stage_commit(self.run, number, stage)
            commit = self._record(StageCommit, "stage", number, key, needed=committed)
            if commit and commit.stage != stage:
                self._add(key, "foreign", f"is foreign: it is the commit of {commit.stage}")
            elif commit:
                round.commits[stage] = commit
            self._read_receipts(round, stage, round.commits.get(stage))
        return round

    def _read_receipts(self, round: _Round, stage: str, commit: StageCommit | None) -> None:
        shards = round.plan.shard_indices(stage) if round.plan else [0] if stage == "train" else []
        planned = {layout.receipt(self.run, round.number, stage, shard): shard for shard in shards}
        for key in dict.fromkeys([*planned, *(commit.receipts if commit else ())]):
            receipt = self._record(Receipt, "receipt", round.number, key, needed=commit is not None)
            if receipt is None:
                continue
            if layout.receipt(self.run, round.number, receipt.stage, receipt.shard) != key:
                self._add(key, "foreign", f"is foreign: it is the receipt of {receipt.stage} {receipt.shard}")
            elif round.plan and key not in planned:
                self._add(key, "foreign", f"is foreign: the plan has no shard {receipt.shard}")
            else:
                round.receipts[key] = receipt

    def _record(self, cls: type[Found], kind: str, number: int, key: str, needed: bool) -> Found | None:
        return self._read(key, lambda data: unpack(cls, kind, self.run, number, data, key), needed)

    def _read(self, key: str, parse: Callable[[bytes], Found], needed: bool = True) -> Found | None:
        """Get and parse; None, and a finding, where that is not possible."""
        try:
            data = self.store.get(key)
            parsed = parse(data)
        except MissingObject:
            if needed:
                self._add(key, "missing", "is missing: what was committed names it")
            return None
        except IntegrityError as error:
            self._add(key, error.kind, str(error).removeprefix(f"{key} "))
            return None
        self.hashes[key] = documents.sha256(data)
        return parsed

    # --- links ---

    def _check_links(self, round: _Round, previous: _Round | None, document: dict | None) -> None:
        for commit in round.commits.values():
            for key, sha256 in commit.receipts.items():
                self._check_hash(key, sha256, layout.stage_commit(self.run, round.number, commit.stage))
        for receipt in round.receipts.values():
            self._check_inputs(receipt, round)
        if round.plan and not round.manifest:
            self._check_parent(layout.plan(self.run, round.number), round.plan.parent, previous, document)
        if round.manifest:
            self._check_manifest(round, round.manifest, previous, document)
        elif round.plan is None and (round.receipts or round.commits):
            self._add(layout.plan(self.run, round.number), "missing", "is missing: receipts of this round lie there")

    def _check_manifest(self, round: _Round, manifest: Manifest, previous: _Round | None,
                        document: dict | None) -> None:
        key = layout.manifest(self.run, round.number)
        self._check_hash(layout.run_json(self.run), manifest.run_json, key)
        self._check_hash(layout.plan(self.run, round.number), manifest.plan, key)
        for stage, sha256 in manifest.stages.items():
            self._check_hash(layout.stage_commit(self.run, round.number, stage), sha256, key)
        self._check_parent(key, manifest.parent, previous, document)
        self._check_copy(manifest, key)
        receipts = list(round.receipts.values())
        planned = [shard for stage in layout.STAGES for shard in round.plan.shard_indices(stage)] if round.plan else []
        whole = round.plan and len(receipts) == len(planned)
        if whole and manifest.files != [receipt.file for receipt in receipts]:
            self._add(key, "stale", "is stale: its files are not those that the receipts name")
        trained = next((receipt.checkpoint for receipt in receipts if receipt.stage == "train"), None)
        if whole and manifest.checkpoint_out != trained:
            self._add(key, "stale", "is stale: its output checkpoint is not the one that the train receipt names")
        if previous and previous.manifest and manifest.checkpoint_in != previous.manifest.checkpoint_out:
            self._add(key, "stale", "is stale: it starts from another checkpoint than the previous round ended with")

    def _check_parent(self, key: str, parent: str | None, previous: _Round | None, document: dict | None) -> None:
        if previous is None:
            self._check_branch(key, parent, document)
            return
        previous_key = layout.manifest(self.run, previous.number)
        if previous_key not in self.hashes:
            self._add(previous_key, "missing", "is missing: a later round names it as its parent")
        elif self.hashes[previous_key] != parent:
            self._add(previous_key, "stale", f"is stale: whole, but not the parent that round {previous.number + 1} "
                                             "names")

    def _check_branch(self, key: str, parent: str | None, document: dict | None) -> None:
        """The first own round follows the manifest that run.json names, which must still be what it was."""
        if document is None:
            return
        branch = document.get("branch")
        if parent != (branch or {}).get("manifest"):
            self._add(key, "stale", "is stale: its parent is not the one that run.json names")
        elif branch and branch["round"]:
            before = branch["round"] - 1
            where = layout.manifest(owner(self.store, branch["run"], before), before)
            try:
                found = documents.sha256(self.store.get(where))
            except MissingObject:
                self._add(where, "missing", f"is missing: {self.run} branched off after it")
                return
            if found != parent:
                self._add(where, "stale", f"is stale: whole, but not the one that {self.run} branched off after")

    def _check_copy(self, manifest: Manifest, key: str) -> None:
        copy = manifest.checkpoint_out.prefix + ROUND_COPY
        if self._read(copy, lambda data: documents.unseal(data, copy)) and self.hashes[copy] != self.hashes[key]:
            self._add(copy, "stale", f"is stale: it is not a copy of {key}")

    def _check_copies(self) -> None:
        """A copy in a checkpoint tells of a round whose manifest is gone, or was about to be put."""
        for name in self.store.folders(layout.run_prefix(self.run)):
            match = _CHECKPOINT.fullmatch(name)
            key = layout.manifest(self.run, int(match[1]) - 1) if match and int(match[1]) else None
            if key is None or key in self.hashes:
                continue
            for folder in self.store.folders(f"{layout.run_prefix(self.run)}{name}/"):
                copy = f"{layout.run_prefix(self.run)}{name}/{folder}/{ROUND_COPY}"
                if self._read(copy, lambda data: documents.unseal(data, copy), needed=False):
                    self._add(key, "missing", f"is missing: {copy} is its copy; if its commit was interrupted, "
                                              "`opd run` puts it again")

    def _check_hash(self, key: str, sha256: str, named_by: str) -> None:
        """A document that is whole must also be the one that was committed."""
        if key in self.hashes and self.hashes[key] != sha256:
            self._add(key, "stale", f"is stale: whole, but not the one that {named_by} names")
        elif key not in self.hashes:
            self._add(key, "missing", f"is missing: {named_by} names it")

    def _check_inputs(self, receipt: Receipt, round: _Round) -> None:
        """Inputs from this round must be files that count, with the hashes that count."""
        prefix = layout.round_prefix(self.run, round.number)
        key = layout.receipt(self.run, round.number, receipt.stage, receipt.shard)
        whole = round.plan is not None and not any(each.startswith(prefix) for each in self.found)
        for name, sha256 in receipt.inputs.items():
            known = self.counted.get(name, self.hashes.get(name))
            unknown_shard = known is None and name.startswith(prefix) and "/part-" in name
            if known not in (None, sha256) or (unknown_shard and whole):
                self._add(key, "stale", f"is stale: it was computed from a {name} that is not the one that counts")

    # --- files ---

    def _shards(self, rounds: list[_Round]) -> dict[str, ShardFile]:
        """Every shard file that a receipt or a manifest names, by key."""
        shards: dict[str, ShardFile] = {}
        for round in rounds:
            for key, receipt in round.receipts.items():
                if receipt.file.key in shards:
                    self._add(key, "duplicate", f"is a duplicate: another receipt names {receipt.file.key} too")
                shards.setdefault(receipt.file.key, receipt.file)
            for file in round.manifest.files if round.manifest else ():
                shards.setdefault(file.key, file)
        return shards

    def _check_planted(self, checkpoint: CheckpointFiles) -> None:
        named = {file.key for file in checkpoint.files} | {checkpoint.prefix + ROUND_COPY}
        try:
            planted = [info.key for info in self.store.list(checkpoint.prefix) if info.key not in named]
        except IntegrityError as error:
            self._add(checkpoint.prefix, error.kind, str(error))
            return
        for key in planted:
            self._add(key, "foreign", "is foreign: it lies in a checkpoint or head that does not name it")

    def _check_files(self, files: list[ShardFile | StoredFile]) -> None:
        keys = {file.sha256: file.key for file in files}
        for file in files:
            path = self._check_bytes(file, keys)
            if path and isinstance(file, ShardFile):
                self._check_table(path, file)

    def _check_bytes(self, file: ShardFile | StoredFile, keys: dict[str, str]) -> Path | None:
        """The local file if its bytes are the committed ones and nobody has looked at it yet."""
        try:
            path = self.store.local_path(file.key)
        except MissingObject:
            self._add(file.key, "missing", "is missing: a receipt or a manifest names it")
            return None
        except IntegrityError as error:
            self._add(file.key, error.kind, str(error))
            return None
        if (file.key, file.sha256) in self.whole:
            return None
        problem = damage(path, file.size, file.sha256)
        if problem is None:
            self.whole.add((file.key, file.sha256))
            return path
        other = keys.get(file_sha256(path)) if problem[0] != "empty" else None
        if other:
            problem = "swapped", f"was swapped: it holds the bytes of {other}"
        elif isinstance(file, ShardFile):
            problem = _other_table(path, file) or problem
        self._add(file.key, *problem)
        return None

    def _check_table(self, path: Path, file: ShardFile) -> None:
        try:
            check_table(path, file)
        except IntegrityError as error:
            self._add(file.key, error.kind, str(error).removeprefix(f"{file.key} "))

    def _add(self, key: str, kind: str, problem: str) -> None:
        self.found.setdefault(key, Finding(key, kind, problem))


def _whole_run(store: ObjectStore, run: str) -> dict:
    """run.json, with a starting checkpoint in it."""
    document = read_run(store, run)
    starting_checkpoint(store, run, 0)
    return document


def _checkpoints(rounds: list[_Round], document: dict | None) -> Iterator[CheckpointFiles]:
    """Every checkpoint that a document names, and every teacher's head."""
    if document:
        yield CheckpointFiles.from_dict(document["student_checkpoint"])
    for round in rounds:
        if round.manifest:
            yield from (round.manifest.checkpoint_in, round.manifest.checkpoint_out)
        for receipt in round.receipts.values():
            yield from filter(None, (receipt.checkpoint, receipt.head))


def _other_table(path: Path, file: ShardFile) -> tuple[str, str] | None:
    """What lies in a shard's place, if it is a whole shard: of another table, or of this one with other rows."""
    try:
        check_table(path, file)
    except IntegrityError as error:
        return ("foreign", str(error).removeprefix(f"{file.key} ")) if error.kind == "foreign" else None
    if path.stat().st_size == file.size:
        return None
    return "stale", f"is stale: a whole shard of {file.rows} rows, but not the committed one"
