"""Trackio, on this machine: rows of its SQLite database, which `trackio show` reads.

Rows are put with ids of our own by the call behind `trackio.log`, a round in one transaction: trackio drops a row whose
id it has, and a failure is raised. `trackio.log` would number rows anew, turn failures into warnings, and ask the hub
who the user is.
"""

import os

from pipeline.config.trackers import Trackio
from pipeline.track.interface import LAST_VALUE, Points, Run
from storage.errors import UserError


class TrackioRun:
    """Rows of a run in a Trackio project."""

    def __init__(self, settings: Trackio):
        if settings.folder is not None:
            os.environ["TRACKIO_DIR"] = os.path.abspath(settings.folder)  # read once, by the import
        from trackio.sqlite_storage import SQLiteStorage

        self._storage, self._project = SQLiteStorage, settings.project

    def open(self, run: Run) -> int:
        self._run = run
        try:
            self._storage.validate_project_name(self._project)
        except ValueError as error:
            raise UserError(f"project: {error}") from None
        rows = self._storage.get_logs(self._project, run.name, run_id=run.key)
        return max((int(row[LAST_VALUE]) + 1 for row in rows if LAST_VALUE in row), default=0)

    def log(self, number: int, points: Points) -> None:
        run = self._run
        self._storage.bulk_log(self._project, run.name, [values for _, values in points],
                               steps=[step for step, _ in points], run_id=run.key,
                               config={**run.config, "tags": run.tags},
                               log_ids=[f"{run.key}:{number}:{step}" for step, _ in points])

    def close(self) -> None:
        pass
