"""Where a report's figures come from: files of sql/reports and sql/views over a snapshot, and nothing else."""

from dataclasses import dataclass, field
from typing import Any

from storage import sqlfiles
from storage.catalog import connect, run_select
from storage.errors import UserError
from storage.layout import STAGES
from storage.objects import ObjectStore
from storage.rounds import Round, beginnings
from storage.snapshot import Snapshot, take_rounds, take_snapshot

VIEWS = {"rounds": "run, round", "steps": "run, step", "accuracy": "run, round, role, task"}
"""Views that a report shows as they are, and their order."""

Rows = list[dict[str, Any]]


@dataclass
class Source:
    """What a report is about: a run, or its round `number`. Answers come from one snapshot, on one thread: the same
    store gives the same bytes.
    """

    run: str
    number: int | None
    document: dict[str, Any]
    """run.json."""
    committed: dict[int, bool]
    """Every round of the snapshot, and whether it is committed."""
    connection: Any
    planned: dict[str, int]
    """Stage -> shards that the round in progress is going to have; empty where all shown rounds are committed."""
    _answers: dict[tuple, Rows] = field(default_factory=dict)

    @property
    def latest(self) -> int | None:
        """The round in question, or the run's last with scored tokens, a committed one where there is any: what would
        be long over all rounds, and nobody reads there, is shown of this one.
        """
        if self.number is not None:
            return self.number
        scored = [row for row in self.rounds() if row["tokens"]]
        return max(((row["committed"], row["round"]) for row in scored), default=(True, None))[1]

    @property
    def has_history(self) -> bool:
        """Whether there are rounds to draw lines through."""
        return self.number is None and len(self.committed) > 1

    def rounds(self) -> Rows:
        """One row per round: of the run, or of the round in question and the one before."""
        return self._ask("rounds", self._since(), self.number)

    def rows(self, name: str) -> Rows:
        """Rows of the run, or of the round in question."""
        return self._ask(name, self.number, self.number)

    def compared(self, name: str) -> Rows:
        """Rows of the run, or of the round in question and the one before."""
        return self._ask(name, self._since(), self.number)

    def rows_of(self, name: str, number: int) -> Rows:
        """Rows of one round."""
        return self._ask(name, number, number)

    def command(self, name: str) -> str:
        """What a reader types to get the rows behind a figure."""
        return f'opd sql "FROM {name}" --run {self.run}' if name in VIEWS else f"opd sql {name} --run {self.run}"

    def at(self, dotted: str) -> Any:
        """A value of run.json; None where it is not there."""
        value: Any = self.document
        for name in dotted.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def _since(self) -> int | None:
        return None if self.number is None else max(0, self.number - 1)

    def _ask(self, name: str, first: int | None, last: int | None) -> Rows:
        """DuckDB reads files of these rounds only, also below the reports' own grouping."""
        key = (name, first, last)
        if key not in self._answers:
            sql = f"FROM {name} ORDER BY {VIEWS[name]}" if name in VIEWS else sqlfiles.load("reports", name).text
            if last is not None:
                sql = f"FROM ({sql.rstrip().rstrip(';')}) WHERE round BETWEEN {int(first or 0)} AND {int(last)}"
            self._answers[key] = run_select(self.connection, sql).to_pylist()
        return self._answers[key]


def open_source(store: ObjectStore, run: str, number: int | None) -> Source:
    """Take a snapshot, the round in progress included. Raises UserError if there is no such run or round."""
    return _source(store, run, number, take_snapshot(store, run, in_progress=True))


def open_round(store: ObjectStore, run: str, number: int) -> Source:
    """The same of a round, the one before, and those that graded the run's start and teacher: another round of a long
    run costs no more than the first."""
    snapshot = take_rounds(store, run, {max(0, number - 1), number} | beginnings(store, run), in_progress=True)
    if number not in {known for _, known, _ in snapshot.rounds()}:
        return open_source(store, run, number)  # which says what rounds there are
    return _source(store, run, number, snapshot)


def _source(store: ObjectStore, run: str, number: int | None, snapshot: Snapshot) -> Source:
    committed = {each: done for _, each, done in snapshot.rounds()}
    if number is not None and number not in committed:
        known = f"it has rounds 0 to {max(committed)}" if committed else "it has no rounds yet"
        raise UserError(f"round {number} of {run} is not in the store {store.url}: {known}")
    shown = committed if number is None else [number]
    planned = {}
    for each in shown:
        if not committed[each]:
            plan = Round(store, run, each).plan()
            planned = {stage: len(plan.shard_indices(stage)) for stage in STAGES}
    return Source(run, number, snapshot.documents[run], committed, connect(store, snapshot, threads=1), planned)
