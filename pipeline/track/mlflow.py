"""MLflow, through its client alone (mlflow-skinny). The run is found by its tag `opd.key`.

A value's time is the run's start plus its step in milliseconds: MLflow keys values by time, so what is sent twice is
there once. The client refuses plain folders; databases need sqlalchemy and alembic, which Prefect brings.
"""

import os

from pipeline.config.trackers import Mlflow
from pipeline.track.interface import LAST_VALUE, Points, Run

DEFAULT_URI = "sqlite:///opd-mlflow.db"
MAX_METRICS, MAX_PARAMS, MAX_TEXT = 1000, 100, 500
"""What MLflow takes in one call, and characters of one parameter."""


class MlflowRun:
    """A run of an MLflow experiment."""

    def __init__(self, settings: Mlflow):
        from mlflow import MlflowClient

        self._settings, self._client_of = settings, MlflowClient

    def open(self, run: Run) -> int:
        uri = self._settings.uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
        self._client = self._client_of(tracking_uri=uri)
        self._run = self._find(run) or self._make(run)
        return int(self._run.data.metrics.get(LAST_VALUE, -1)) + 1

    def log(self, number: int, points: Points) -> None:
        from mlflow.entities import Metric

        start = self._run.info.start_time
        metrics = [Metric(name, value, start + step, step) for step, values in points
                   for name, value in values.items()]
        for at in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(self._run.info.run_id, metrics=metrics[at:at + MAX_METRICS])

    def close(self) -> None:
        self._client.set_terminated(self._run.info.run_id)

    def _find(self, run: Run):
        found = self._client.search_runs([self._experiment()], f"tags.`opd.key` = '{run.key}'", max_results=1)
        return found[0] if found else None

    def _make(self, run: Run):
        from mlflow.entities import Param

        tags = {"opd.key": run.key, "opd.tags": ", ".join(run.tags)}
        made = self._client.create_run(self._experiment(), run_name=run.name, tags=tags)
        params = [Param(name, value[:MAX_TEXT]) for name, value in flat(run.config)]
        for at in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(made.info.run_id, params=params[at:at + MAX_PARAMS])
        return made

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._settings.experiment)
        return found.experiment_id if found else self._client.create_experiment(self._settings.experiment)


def flat(value, name: str = ""):
    """(dotted name, text) of every plain value of a config."""
    if not isinstance(value, dict | list):
        yield name, str(value)
        return
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in pairs:
        yield from flat(each, f"{name}.{key}" if name else str(key))
