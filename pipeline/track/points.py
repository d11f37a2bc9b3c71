"""The numbers of committed rounds, named as trackers show them: train/<column> of `steps` at each step, and at the
round's last step round/<column> of `rounds` and accuracy/<benchmark>/<role>/<column> of `accuracy`.

Only columns of numbers are read: no text, no token and no id of either ever gets here. The student that began the run
is the student's curve at step 0.
"""

import pyarrow as pa

from pipeline.track.interface import LAST_VALUE, Points
from storage.catalog import connect, query
from storage.objects import ObjectStore
from storage.rounds import Round, beginnings
from storage.snapshot import take_rounds


class RoundPoints:
    """Points of rounds up to `last`, read when asked for and kept for the next tracker. Rounds before the first one
    that is asked for are not looked at: a tracker that has followed a long run costs what it cost at the start."""

    def __init__(self, store: ObjectStore, run: str, last: int):
        self._store, self._run, self._last = store, run, last
        self._first = last + 1
        self._connection = None
        self._known: dict[int, Points] = {}

    def __call__(self, number: int) -> Points:
        """Points of one round. Raises IntegrityError for damaged files."""
        if number not in self._known:
            self._known[number] = self._read(number)
        return self._known[number]

    def _read(self, number: int) -> Points:
        steps = numbers(Round(self._store, self._run, number).read("train"))
        points = {int(row.pop("step")): named("train", row) for row in steps}
        last = points.setdefault(max(points, default=0), {})
        for row in self._view("accuracy", number):
            role, task = row.pop("role"), row.pop("task")
            at = points.setdefault(0, {}) if role == "start" else last
            at.update(named(f"accuracy/{task}/{'student' if role == 'start' else role}", row))
        for row in self._view("rounds", number):
            last.update(named("round", row))
        last[LAST_VALUE] = float(number)
        return sorted(points.items())

    def _view(self, view: str, number: int) -> list[dict]:
        if number < self._first:
            self._first = number
            rounds = {*range(number, self._last + 1), *beginnings(self._store, self._run)}
            if self._connection is not None:
                self._connection.close()
            self._connection = connect(self._store, take_rounds(self._store, self._run, rounds))
        found = query(self._connection, f"SELECT * FROM {view} WHERE run = $run AND round = $round ORDER BY ALL",
                      {"run": self._run, "round": number})
        return numbers(found.drop_columns(["run", "round"]), keep=("role", "task"))


def numbers(table: pa.Table, keep: tuple[str, ...] = ()) -> list[dict]:
    """Rows of the table's number columns and of `keep`, nulls left out."""
    wanted = [field.name for field in table.schema if field.name in keep or is_number(field.type)]
    return [{name: value for name, value in row.items() if value is not None}
            for row in table.select(wanted).to_pylist()]


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def named(prefix: str, row: dict) -> dict[str, float]:
    return {f"{prefix}/{name}": float(value) for name, value in row.items()}
