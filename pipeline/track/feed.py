"""Feeding trackers from the store, after a round's commit or long after it.

    feed(store, "first-run", 3, config.tracker)  ->  {"tensorboard": "ok", "wandb": "..."}

Trackers follow the store and never the other way round. Feeding round n brings each tracker from the rounds that it
holds to round n: feeding twice changes nothing, and a tracker that was down, or named late, catches up in order. What
is wrong with a tracker is one line in the result; a round is committed long before and stays so.
"""

import importlib.util

from pipeline.config.trackers import Tracker
from pipeline.context import Progress, silent
from pipeline.track.apart import TIMEOUT_S, feed_apart, without_secrets
from pipeline.track.interface import Run
from pipeline.track.points import RoundPoints
from storage.errors import UserError
from storage.objects import ObjectStore
from storage.snapshot import Snapshot, take_rounds

KEY_DIGITS = 8
NO_DUCKDB = "needs duckdb, which is not installed here: pip install 'duckdb>=2.0'"


def feed(store: ObjectStore, run: str, number: int, trackers: list[Tracker], progress: Progress = silent,
         timeout_s: int = TIMEOUT_S) -> dict[str, str]:
    """Show rounds 0 to `number` of `run` in every tracker. Returns by tracker "ok" or one line about what is wrong.

    A second tracker of a type is named `type 2`. Raises UserError for a run or round that is not committed,
    IntegrityError for a damaged store, RuntimeError for a bug.
    """
    snapshot = take_rounds(store, run, {0, number})
    if (run, number, True) not in snapshot.rounds():
        raise UserError(f"round {number} of {run} cannot be tracked: it is not committed; `opd run` finishes it")
    if importlib.util.find_spec("duckdb") is None:
        return dict.fromkeys(names(trackers), NO_DUCKDB)
    about, points_of, said = describe(snapshot, run), RoundPoints(store, run, number), {}
    for done, (name, tracker) in enumerate(zip(names(trackers), trackers, strict=True)):
        progress(name, done, len(trackers))
        said[name] = feed_apart(tracker, about, points_of, number, timeout_s)
    return said


def names(trackers: list[Tracker]) -> list[str]:
    """One name per tracker: its type, counted from the second of a type."""
    types = [tracker.type for tracker in trackers]
    counts = [types[:at].count(kind) + 1 for at, kind in enumerate(types)]
    return [kind if count == 1 else f"{kind} {count}" for kind, count in zip(types, counts, strict=True)]


def describe(snapshot: Snapshot, run: str) -> Run:
    """What trackers are told of the run. Its config is run.json's, less secrets if it had any."""
    config = clean(snapshot.documents[run]["config"])
    first = snapshot.manifest(run, 0)
    assert first is not None
    objective = config.get("objective", {}).get("type")
    return Run(run, f"{run}-{first.id[:KEY_DIGITS]}", config, ["opd-rounds", *([objective] if objective else [])])


def clean(value):
    """A config's value without secrets in its texts."""
    if isinstance(value, dict):
        return {key: clean(each) for key, each in value.items()}
    if isinstance(value, list):
        return [clean(each) for each in value]
    return without_secrets(value) if isinstance(value, str) else value
