"""Lineage: every round behind a checkpoint, back to the base student, with what it learnt from.

    opd lineage CHECKPOINT

A checkpoint is named by its folder (inside the store or a copy elsewhere), or by the first digits of its fingerprint
or of its folder's name. A folder is believed for what its weights hash to, never for what its round.json claims.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage import documents, layout
from storage.checkpoints import ROUND_COPY, folder_hashes, starting_checkpoint, weights_fingerprint
from storage.errors import IntegrityError, MissingObject, UserError
from storage.objects import ObjectStore
from storage.records import CheckpointFiles, Manifest
from storage.rounds import Round
from storage.runs import first_own_round, list_runs, read_manifest, read_run, run_sha256

_DIGITS = re.compile(r"[0-9a-f]{4,64}")


def lineage(store: ObjectStore, checkpoint: str | Path) -> dict[str, Any]:
    """What `checkpoint` learnt from.

    Returns {checkpoint, fingerprint, also, rounds, runs, base}: `rounds` from the newest to the first, each with the
    hashes that prove it, row counts per table and the stages' summed facts; `runs` holds config, teacher and versions
    by run id; `base` is the student that began it all; `also` lists other rounds that ended with the same weights.
    """
    places = _find(store, checkpoint)
    run, number, files = places[0]
    chain = list(_chain(store, run, number - 1))
    first = chain[-1] if chain else None
    base = first.checkpoint_in if first else files
    shared = (file.key.partition("/")[0].removeprefix("run=") for manifest in chain for file in manifest.files)
    runs = list(dict.fromkeys([run, *(manifest.run for manifest in chain), *shared]))
    return {"checkpoint": files.prefix, "fingerprint": files.fingerprint,
            "also": [place.prefix for _, _, place in places[1:]],
            "rounds": [_describe_round(store, manifest) for manifest in chain],
            "runs": {each: _describe_run(store, each) for each in runs},
            "base": {"checkpoint": base.prefix, "fingerprint": base.fingerprint,
                     "student": read_run(store, first.run if first else run).get("student")}}


def checkpoints(store: ObjectStore) -> Iterator[tuple[str, int, CheckpointFiles]]:
    """(run, number, files) of every checkpoint that counts: the student that starts round `number` of `run`.

    A branch's first one is left out: it is a round's output in the parent run.
    """
    for run in list_runs(store):
        number = first_own_round(store, run)
        if not read_run(store, run).get("branch"):
            yield run, 0, starting_checkpoint(store, run, 0)
        while manifest := read_manifest(store, run, number):
            number += 1
            yield run, number, manifest.checkpoint_out


def _find(store: ObjectStore, checkpoint: str | Path) -> list[tuple[str, int, CheckpointFiles]]:
    """The checkpoints meant, the one that was named first."""
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return _find_folder(store, folder)
    name = str(checkpoint).strip("/")
    found = [place for place in checkpoints(store) if _is_meant(place[2], name)]
    if not found:
        raise UserError(f"checkpoint {str(checkpoint)[:200]!r} is neither a folder nor the fingerprint of a checkpoint "
                        f"in {store.url}: give at least 4 digits")
    fingerprints = sorted({place[2].fingerprint for place in found})
    if len(fingerprints) > 1:
        raise UserError(f"checkpoint {name!r} is ambiguous: {', '.join(each[:16] for each in fingerprints[:5])} begin "
                        "with it; give more digits")
    return sorted(found, key=_is_base)


def _is_meant(files: CheckpointFiles, name: str) -> bool:
    prefix = files.prefix.removesuffix("/")
    if _DIGITS.fullmatch(name):
        return files.fingerprint.startswith(name) or prefix.rpartition("/")[2].startswith(name)
    return prefix == name


def _find_folder(store: ObjectStore, folder: Path) -> list[tuple[str, int, CheckpointFiles]]:
    fingerprint = weights_fingerprint(folder_hashes(folder))
    found = [place for place in checkpoints(store) if place[2].fingerprint == fingerprint]
    claimed = _claim(folder)
    if not found:
        claim = f", though its round.json names round {claimed[1]} of {claimed[0]}" if claimed else ""
        raise UserError(f"checkpoint {folder} has weights {fingerprint[:12]}, which no round in {store.url} ended "
                        f"with{claim}: they were changed, or belong to another store")
    return sorted(found, key=lambda place: ((place[0], place[1] - 1) != claimed, _is_base(place)))


def _is_base(place: tuple[str, int, CheckpointFiles]) -> bool:
    """Base students come last: a run may begin with what another run ended with."""
    return place[1] == 0


def _claim(folder: Path) -> tuple[str, int] | None:
    """(run, round) of the folder's round.json, if it has a whole one."""
    copy = folder / ROUND_COPY
    if not copy.is_file():
        return None
    document = documents.unseal(copy.read_bytes(), str(copy))
    return document.get("run"), document.get("round")


def _chain(store: ObjectStore, run: str, number: int) -> Iterator[Manifest]:
    """Manifests from round `number` of `run` back to the first, across branches; every link is checked."""
    expected = None
    while number >= 0:
        manifest = read_manifest(store, run, number)
        if manifest is None:
            raise MissingObject(layout.manifest(run, number))
        if expected not in (None, manifest.id):
            raise IntegrityError(f"{layout.manifest(run, number)} is not the parent that the next round names: "
                                 f"{manifest.id[:12]}, expected {expected[:12]}", "stale")
        yield manifest
        expected, number = manifest.parent, number - 1


def _describe_round(store: ObjectStore, manifest: Manifest) -> dict[str, Any]:
    round = Round(store, manifest.run, manifest.round)
    rows: dict[str, int] = {}
    for file in manifest.files:
        rows[file.table] = rows.get(file.table, 0) + file.rows
    return {"run": manifest.run, "round": manifest.round, "manifest": manifest.id, "parent": manifest.parent,
            "run_json": manifest.run_json, "plan": manifest.plan, "stages": manifest.stages,
            "checkpoint_in": manifest.checkpoint_in.fingerprint, "checkpoint_out": manifest.checkpoint_out.fingerprint,
            "rows": rows, "files": {file.key: file.sha256 for file in manifest.files},
            "facts": {stage: _sum([receipt.facts for receipt in round.receipts(stage)]) for stage in layout.STAGES}}


def _describe_run(store: ObjectStore, run: str) -> dict[str, Any]:
    document = read_run(store, run)
    kept = {name: document.get(name) for name in ("config", "teacher", "student", "versions", "branch")}
    return {**kept, "mask": (document.get("config") or {}).get("mask"), "run_json": run_sha256(store, run)}


def _sum(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of all shards added up, key by key; what is not a count stays if all shards agree on it."""
    total: dict[str, Any] = {}
    for name in dict.fromkeys(name for each in facts for name in each):
        values = [each[name] for each in facts if name in each]
        if all(isinstance(value, dict) for value in values):
            total[name] = _sum(values)
        elif all(type(value) is int for value in values):
            total[name] = sum(values)
        elif all(value == values[0] for value in values):
            total[name] = values[0]
    return total
