"""Runs: run.json, put once, which rounds are committed, and which run a branch has its first rounds from.

run.json is the run's identity: resolved config, versions, fingerprints of both models, the starting checkpoint. Two
keys of the config are no part of it. `rounds` may be raised later: run.json keeps the first value, is never
rewritten, and whoever runs rounds goes by the config in hand. `store` is not recorded at all: a store that was moved
or copied holds the same run, with the same hashes.

A branch is a run whose run.json names another: {"branch": {run, round, manifest}}. Its rounds before `round` are the
other run's, read where they lie; `manifest` is the last of them, null if there is none. From `round` on it has its own.
"""

from functools import lru_cache
from typing import Any

from storage import documents, layout
from storage.errors import IntegrityError, MissingObject, UserError
from storage.objects import ObjectStore, exists
from storage.records import Manifest, unpack

_NAMED_KEYS = 4
"""Differing keys that a refusal names."""


def create_run(store: ObjectStore, run: str, document: dict[str, Any]) -> dict[str, Any]:
    """Put run.json, or find it. Returns the document that counts.

    Raises UserError if the run exists with another document, `config.rounds` and `config.store` apart.
    """
    document = _without(document, "store")
    store.put_if_absent(layout.run_json(run), documents.seal({**document, "kind": "run", "run": run}))
    stored = read_run(store, run)
    differing = documents.differing_keys(_without(stored, "rounds"), _without(document, "rounds"))
    if differing:
        more = f" and {len(differing) - _NAMED_KEYS} more" if len(differing) > _NAMED_KEYS else ""
        raise UserError(f"run {run} exists with other values of {', '.join(differing[:_NAMED_KEYS])}{more}: use "
                        "another run id, or the config it began with (only `rounds` may change)")
    return stored


def read_run(store: ObjectStore, run: str) -> dict[str, Any]:
    """run.json. Raises MissingObject if there is no such run."""
    key = layout.run_json(run)
    document = documents.unseal(store.get(key), key)
    if document.pop("kind", None) != "run" or document.pop("run", None) != run:
        raise IntegrityError(f"{key} is foreign: it is not the run.json of {run}", "foreign")
    return document


def run_sha256(store: ObjectStore, run: str) -> str:
    """sha256 of run.json's bytes."""
    return documents.sha256(store.get(layout.run_json(run)))


def list_runs(store: ObjectStore) -> list[str]:
    """Ids of the runs that have a run.json, sorted."""
    ids = [name.removeprefix("run=") for name in store.folders() if name.startswith("run=")]
    return [run for run in ids if layout.RUN_ID.fullmatch(run) and exists(store, layout.run_json(run))]


def first_own_round(store: ObjectStore, run: str) -> int:
    """0, or the round at which a branch left its parent."""
    branch = _branch(store, run)
    return branch[1] if branch else 0


def beginnings(store: ObjectStore, run: str) -> set[int]:
    """Rounds with which the run began, and those that it left as a branch: 0 and the first own one of each. They alone
    grade the starting student and the teacher."""
    found = {0}
    while branch := _branch(store, run):
        run, number = branch
        found.add(number)
    return found


def owner(store: ObjectStore, run: str, number: int) -> str:
    """The run whose folder holds round `number` of `run`: itself, or for a branch's first rounds the one it left."""
    while (branch := _branch(store, run)) and 0 <= number < branch[1]:
        run = branch[0]
    return run


def _branch(store: ObjectStore, run: str) -> tuple[str, int] | None:
    """(parent, first own round) of a branch; None for other runs, and for one that has not begun."""
    try:
        return _recorded_branch(store, run)
    except MissingObject:
        return None


@lru_cache(maxsize=1024)
def _recorded_branch(store: ObjectStore, run: str) -> tuple[str, int] | None:
    """Read once per process and store: every round that is looked up asks it, and run.json is put once."""
    branch = read_run(store, run).get("branch")
    return (branch["run"], branch["round"]) if branch else None


def committed_rounds(store: ObjectStore, run: str) -> list[int]:
    """Numbers of the committed rounds: 0 to n - 1, since every manifest names its parent. A branch counts its parent's
    too.

    Looked for from the newest folder down, so that the hundredth round costs as much as the first: one listing and a
    manifest or two.
    """
    first, prefix = first_own_round(store, run), layout.run_prefix(run)
    names = (name.removeprefix("round=") for name in store.folders(prefix) if name.startswith("round="))
    started = {int(name) for name in names if name.isascii() and name.isdecimal()}
    newest = first - 1
    while newest + 1 in started:
        newest += 1
    while newest >= first and not exists(store, layout.manifest(run, newest)):
        newest -= 1
    return list(range(newest + 1))


def read_manifest(store: ObjectStore, run: str, number: int) -> Manifest | None:
    """The manifest of a committed round, None if it is not committed. A branch's first ones are its parent's."""
    run = owner(store, run, number)
    key = layout.manifest(run, number)
    try:
        data = store.get(key)
    except MissingObject:
        return None
    return unpack(Manifest, "manifest", run, number, data, key)


def parent_manifest(store: ObjectStore, run: str, number: int) -> str | None:
    """Manifest id that round `number` follows: the previous round's, which may be a branch's parent's; None for 0."""
    if number == 0:
        return None
    previous = read_manifest(store, run, number - 1)
    if previous is None:
        raise UserError(f"round {number} of {run} cannot start: round {number - 1} is not committed; finish it first")
    return previous.id


def _without(document: dict[str, Any], key: str) -> dict[str, Any]:
    config = document.get("config")
    if not isinstance(config, dict):
        return document
    return {**document, "config": {name: value for name, value in config.items() if name != key}}
