"""What a person reads of a round in Prefect: a report, a table, and the progress of a long stage.

Artifacts hold statistics, never what a model or a data set wrote. A run has one key per kind, so that the page of an
artifact is the run's history, round by round. By the time they are made the round is committed: one that fails costs
a warning in the log and nothing else.
"""

import hashlib
import re
import time

from flows.child import OnProgress

LONG_S = 5.0
"""A stage that takes longer gets a progress artifact..."""
EVERY_S = 3.0
"""... which is updated no more often than this."""
LOG_EVERY_S = 10.0
"""The same progress goes to the log, no more often than this."""


def artifact_key(run: str, kind: str) -> str:
    """Key of a run's artifacts of one kind. Keys know only a-z 0-9 -; a run id with more also gets its hash."""
    plain = re.sub("[^a-z0-9-]", "-", run)
    unique = plain if plain == run else f"{plain}-{hashlib.sha256(run.encode()).hexdigest()[:6]}"
    return f"opd-{unique}-{kind}"


def publish(run: str, number: int, summary: dict) -> None:
    """Make a round's markdown and table artifacts from the job `summary`: {title, markdown, table}."""
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    attempt("the report", lambda: create_markdown_artifact(
        summary["markdown"], key=artifact_key(run, "report"), description=summary["title"]))
    attempt("the table", lambda: create_table_artifact(
        summary["table"], key=artifact_key(run, "statistics"), description=f"Statistics of {run}, round {number}"))


def attempt(what: str, make):
    """What `make` returns; None, and one line in the log, if it fails."""
    try:
        return make()
    except Exception as error:  # the server is away, a child was killed: the round is worth more than its picture
        from prefect import get_run_logger

        get_run_logger().warning("%s cannot be shown: %s: %s", what, type(error).__name__, " ".join(str(error).split()))
        return None


class StageProgress:
    """The progress of one stage: a line in the log now and then, and an artifact if the stage is a long one."""

    def __init__(self, run: str, number: int, stage: str, shards: int):
        self._title, self._shards = f"Round {number} of {run}: {stage}", shards
        self._key = artifact_key(run, "progress")
        self._start = self._logged = self._updated = time.monotonic()
        self._artifact = None
        self._working = True

    def shard(self, at: int) -> OnProgress:
        """The progress callback of the stage's `at`-th shard, from 1."""
        return lambda what, done, total: self._tell(at, what, done, total)

    def finish(self) -> None:
        """Say that every shard is done."""
        if self._artifact:
            self._show(100.0, f"{self._title}, {self._shards} shards")

    def _tell(self, at: int, what: str, done: int, total: int) -> None:
        from prefect import get_run_logger

        now = time.monotonic()
        if now - self._logged >= LOG_EVERY_S:
            self._logged = now
            get_run_logger().info("%s: %s of %s", what, done, total)
        if now - self._start >= LONG_S and now - self._updated >= EVERY_S:
            self._updated = now
            within = done / total if total else 0.0
            self._show(100.0 * (at - 1 + min(within, 1.0)) / self._shards,
                       f"{self._title}, shard {at} of {self._shards}")

    def _show(self, percent: float, description: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if not self._working:
            return
        if self._artifact is None:
            self._artifact = attempt(
                "progress", lambda: create_progress_artifact(percent, key=self._key, description=description))
        else:
            self._artifact = attempt(
                "progress", lambda: update_progress_artifact(self._artifact, percent, description=description))
        self._working = self._artifact is not None
