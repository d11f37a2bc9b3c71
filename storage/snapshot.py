"""Snapshots: which files readers see. Taken from manifests, and for a round in progress from its receipts.

A committed round never changes, so its manifest is all there is to read. A round in progress is frozen at the
receipts that lay there when the snapshot was taken; what comes later is not in it. Shard files are never listed.
A branch's first rounds are in it as the branch's, with its parent's files.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from storage import layout
from storage.errors import IntegrityError, UserError
from storage.objects import ObjectStore, exists
from storage.records import Manifest, Plan, ShardFile
from storage.rounds import Round
from storage.runs import committed_rounds, list_runs, read_manifest, read_run


@dataclass(frozen=True)
class RoundFiles:
    """One round: its files by table, in shard order. `manifest` is None and `plan` is set while in progress."""

    run: str
    number: int
    tables: Mapping[str, list[ShardFile]]
    manifest: Manifest | None = None
    plan: Plan | None = None


@dataclass(frozen=True)
class Snapshot:
    """Rounds of a store at one moment."""

    store: ObjectStore
    documents: Mapping[str, dict[str, Any]]
    """run.json of every run in the snapshot."""
    _rounds: Mapping[tuple[str, int], RoundFiles] = field(default_factory=dict)

    def rounds(self) -> list[tuple[str, int, bool]]:
        """(run, number, committed), sorted."""
        return [(run, number, files.manifest is not None) for (run, number), files in sorted(self._rounds.items())]

    def files(self, run: str, number: int, table: str) -> list[ShardFile]:
        """The shards of a table that count, in order; none where the stage has not begun."""
        return list(self._rounds[run, number].tables.get(table, []))

    def only(self, run: str, number: int) -> "Snapshot":
        """The same with one round alone."""
        return Snapshot(self.store, {run: self.documents[run]}, {(run, number): self._rounds[run, number]})

    def manifest(self, run: str, number: int) -> Manifest | None:
        """The round's manifest, None while it is in progress."""
        return self._rounds[run, number].manifest


def take_snapshot(store: ObjectStore, run: str | None = None, in_progress: bool = False, since: int = 0) -> Snapshot:
    """Committed rounds of `run` (of all runs, if None), and with `in_progress` the one each run is working on.

    `since` leaves earlier rounds out: a manifest that is not read costs nothing, and a run has hundreds.
    """
    runs = list_runs(store) if run is None else [_known(store, run)]
    rounds = [files for each in runs for files in _rounds_of(store, each, in_progress, since)]
    return _snapshot(store, runs, rounds)


def take_rounds(store: ObjectStore, run: str, numbers: Iterable[int], in_progress: bool = False) -> Snapshot:
    """Those of `numbers` that are there, of one run: costs the same however many rounds the run has."""
    found = [_round_of(store, run, number, in_progress) for number in sorted(set(numbers))]
    return _snapshot(store, [_known(store, run)], [files for files in found if files is not None])


def _snapshot(store: ObjectStore, runs: list[str], rounds: list[RoundFiles]) -> Snapshot:
    return Snapshot(store, {each: read_run(store, each) for each in runs},
                    {(files.run, files.number): files for files in rounds})


def _known(store: ObjectStore, run: str) -> str:
    """`run`. Raises UserError, naming others, if there is no such run."""
    if not exists(store, layout.run_json(run)):
        runs = list_runs(store)
        known = f"it has {', '.join(runs[:10])}" if runs else "it has no runs yet"
        raise UserError(f"run {run} is not in the store {store.url}: {known}")
    return run


def _rounds_of(store: ObjectStore, run: str, in_progress: bool, since: int) -> list[RoundFiles]:
    found: list[RoundFiles] = []
    while manifest := read_manifest(store, run, since + len(found)) or _just_committed(store, run, since + len(found)):
        found.append(_committed(run, manifest))
    working = _working_on(store, run, since + len(found)) if in_progress else None
    return found if working is None else [*found, working]


def _round_of(store: ObjectStore, run: str, number: int, in_progress: bool) -> RoundFiles | None:
    if manifest := read_manifest(store, run, number):
        return _committed(run, manifest)
    return _working_on(store, run, number) if in_progress else None


def _committed(run: str, manifest: Manifest) -> RoundFiles:
    return RoundFiles(run, manifest.round, _by_table(manifest.files), manifest)


def _working_on(store: ObjectStore, run: str, number: int) -> RoundFiles | None:
    """A round that is planned and not committed."""
    round = Round(store, run, number)
    if not round.planned():
        return None
    files = [receipt.file for stage in layout.STAGES for receipt in round.receipts(stage)]
    return RoundFiles(run, number, _by_table(files), plan=round.plan())


def _just_committed(store: ObjectStore, run: str, number: int) -> Manifest | None:
    """The manifest of a round that was committed between two looks; None where the committed rounds end. Raises
    IntegrityError for a gap among them."""
    if number >= len(committed_rounds(store, run)):
        return None
    manifest = read_manifest(store, run, number)
    if manifest is None:
        raise IntegrityError(f"round {number} of {run} has no manifest, though a later round has one: it was deleted, "
                             "or never copied; run `opd verify`")
    return manifest


def _by_table(files: list[ShardFile]) -> dict[str, list[ShardFile]]:
    tables: dict[str, list[ShardFile]] = {}
    for file in files:
        tables.setdefault(file.table, []).append(file)
    return tables
