"""Checks of the scores in SQL (sql/checks): each finds one way in which a teacher can be silent, before training.

    refuse_silent_round(snapshot, run, number)          from files, however large the round is
    refuse(check_scores(rollouts, tokens))              from tables at hand

A check returns no row while all is well, else one row per round: how many tokens, and what is wrong, on one line.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from storage import sqlfiles
from storage.catalog import connect, connect_tables, run_select
from storage.errors import UserError
from storage.snapshot import Snapshot

CHECKS = ("row_count", "wrong_token", "not_finite", "positive_log_prob", "all_zeros", "uniform", "constant",
          "own_entry", "topk_mass", "shifted_by_one")
"""Every file of sql/checks, the one first that says most when several fail."""
READ = ("rollouts", "tokens")
"""The views that they read; making the others takes longer than checking a small round."""


@dataclass(frozen=True)
class Failure:
    """One check that one round does not pass."""

    check: str
    run: str
    round: int
    tokens: int
    detail: str

    @property
    def line(self) -> str:
        return f"scores of round {self.round} of {self.run} fail the check {self.check}: {self.detail}"


def failed_checks(connection, checks: Sequence[str] | None = None) -> list[Failure]:
    """What the rounds that `connection` shows do not pass, of all checks or of those named.

    A round in progress fails `row_count` until all of its shards are scored.
    """
    return [Failure(check, **row) for check in checks or CHECKS
            for row in run_select(connection, sqlfiles.load("checks", check).text).to_pylist()]


def check_scores(rollouts: pa.Table, tokens: pa.Table, *, run: str = "run", number: int = 0) -> list[Failure]:
    """The same for tables at hand: the rollouts of a shard or a round, and all of their scores."""
    with connect_tables({"rollouts": rollouts, "tokens": tokens}, run=run, number=number) as connection:
        return failed_checks(connection)


def refuse_silent_round(snapshot: Snapshot, run: str, number: int) -> None:
    """Raise UserError unless a round whose shards are all scored passes; their sizes and hashes are checked too."""
    with connect(snapshot.store, snapshot.only(run, number), verified=True, views=READ) as connection:
        refuse(failed_checks(connection))


def refuse(failures: Sequence[Failure]) -> None:
    """Raise UserError, naming the first failure, if there is one."""
    if failures:
        more = f" (and {len(failures) - 1} more checks)" if len(failures) > 1 else ""
        raise UserError(f"{failures[0].line}{more}; training is refused: check the teacher and score again")
