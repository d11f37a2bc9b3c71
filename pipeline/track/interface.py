"""What a tracker is: three methods, and one module for each that imports its library when it is used.

A backend is handed numbers and the run's config, and nothing else: it has no store to read text or tokens from. A run
is known to trackers as `Run.key`: the run's id and the start of its first round's manifest id, so that a run made anew
under an old id gets curves of its own. Rounds come in order, each once, so what a tracker holds is the first so many
rounds, and `open` says how many.
"""

import importlib
import importlib.util
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.config.trackers import Tracker
from storage.errors import UserError

Points = list[tuple[int, dict[str, float]]]
"""(step, values by name) with rising steps; the last value of the last step is named LAST_VALUE."""

LAST_VALUE = "round/round"
"""The round's own number. It is written last, so a tracker that shows it holds the whole round."""

INSTALL = "pip install 'opd-rounds[trackers]'"


@dataclass(frozen=True)
class Run:
    """A run as trackers see it."""

    name: str
    """The run's id."""
    key: str
    """Unlike the name never used again for other numbers; clean like a run id."""
    config: dict[str, Any]
    tags: list[str]


class Backend(Protocol):
    """One tracker."""

    def open(self, run: Run) -> int:
        """Find the run there, or make it; returns how many rounds it holds."""

    def log(self, number: int, points: Points) -> None:
        """Show a whole round. A round of which a part is there already gets the rest."""

    def close(self) -> None:
        """Wait until everything is there."""


@dataclass(frozen=True)
class _Kind:
    module: str
    backend: str
    library: str
    environment: dict[str, str | None] = field(default_factory=dict)
    """Set before the library is imported, None for unset: no analytics, no detours."""
    defaults: dict[str, str] = field(default_factory=dict)
    """Set if they are not: retries that end."""


KINDS = {
    "tensorboard": _Kind("pipeline.track.tensorboard", "EventFiles", "tensorboard"),
    "wandb": _Kind("pipeline.track.wandb", "WandbRun", "wandb", {
        "WANDB_ERROR_REPORTING": "false", "WANDB_RUN_ID": None, "WANDB_RESUME": None, "WANDB_MODE": None,
        "WANDB_NAME": None, "WANDB_TAGS": None, "WANDB_SERVICE": None}),
    "mlflow": _Kind("pipeline.track.mlflow", "MlflowRun", "mlflow", {
        "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}, {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}),
    "trackio": _Kind("pipeline.track.trackio", "TrackioRun", "trackio", {
        "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_ANALYTICS_ENABLED": "False",
        "TRACKIO_SPACE_ID": None, "TRACKIO_SERVER_URL": None, "TRACKIO_DATASET_ID": None, "TRACKIO_BUCKET_ID": None,
        "TRACKIO_REGISTRY_BUCKET_ID": None, "TRACKIO_WEBHOOK_URL": None}),
}


def check_libraries(trackers: list[Tracker]) -> None:
    """Raise UserError for the first tracker whose library is not installed here. Imports nothing."""
    for tracker in trackers:
        if importlib.util.find_spec(KINDS[tracker.type].library) is None:
            raise UserError(missing(tracker.type))


def load_backend(tracker: Tracker) -> Backend:
    """The tracker's backend, its library imported. Raises UserError, one line, if that cannot be."""
    kind = KINDS[tracker.type]
    try:
        return getattr(importlib.import_module(kind.module), kind.backend)(tracker)
    except ModuleNotFoundError as error:
        raise UserError(missing(tracker.type, error.name)) from None
    except ImportError as error:
        raise UserError(f"tracker {tracker.type}: its library cannot be imported ({error}); {INSTALL}") from None


def missing(name: str, module: str | None = None) -> str:
    return f"tracker {name} needs {module or KINDS[name].library}, which is not installed here: {INSTALL}"
