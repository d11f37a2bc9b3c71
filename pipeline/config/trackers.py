"""Where a run's curves are shown besides the store: one section per tracker, `type` names it.

API keys and passwords come from the environment (WANDB_API_KEY, MLFLOW_TRACKING_PASSWORD), never from here: a config is
kept in the store.
"""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.config.section import Section

Project = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]

PASSWORD = re.compile(r"://[^@\s]*:[^@\s]*@|[?&;](?:password|passwd|pwd|token|secret|key)=", re.IGNORECASE)
"""Where an address holds a secret."""


class TensorBoard(Section):
    """Event files of TensorBoard: `tensorboard --logdir FOLDER`."""

    type: Literal["tensorboard"] = "tensorboard"
    folder: str = "./opd-tensorboard"
    """Gets one folder per run, with one event file per round."""


class Wandb(Section):
    """Weights & Biases."""

    type: Literal["wandb"] = "wandb"
    project: Project = "opd-rounds"
    entity: str | None = None
    """User or team; null: the default of the account that WANDB_API_KEY belongs to."""
    mode: Literal["online", "offline"] = "online"
    """Offline writes one folder per round, which `wandb sync FOLDER` uploads later."""
    folder: str = "./opd-wandb"
    """Where offline rounds lie, and wandb's own logs of online ones."""


class Mlflow(Section):
    """MLflow tracking: a database or a server."""

    type: Literal["mlflow"] = "mlflow"
    uri: str | None = None
    """Such as `sqlite:///opd-mlflow.db` or `https://host`, without password; null: what MLFLOW_TRACKING_URI names, or
    else `sqlite:///opd-mlflow.db`."""
    experiment: Annotated[str, Field(min_length=1, max_length=250)] = "opd-rounds"

    @field_validator("uri")
    @classmethod
    def _no_secret_no_plain_folder(cls, uri: str | None) -> str | None:
        if uri and PASSWORD.search(uri):
            raise ValueError("tracker mlflow: uri holds a password: leave it out and set MLFLOW_TRACKING_USERNAME and "
                             "MLFLOW_TRACKING_PASSWORD, or set MLFLOW_TRACKING_URI instead of uri")
        if uri is not None and (uri.startswith("file:") or "://" not in uri and not uri.startswith("databricks")):
            raise ValueError(f"tracker mlflow: uri = {uri!r} is a plain folder, which MLflow no longer writes: use a "
                             "database such as sqlite:///opd-mlflow.db, or a server's address")
        return uri


class Trackio(Section):
    """Trackio, on this machine only: `trackio show`."""

    type: Literal["trackio"] = "trackio"
    project: Project = "opd-rounds"
    folder: str | None = None
    """Of its databases; null: where `trackio show` looks (TRACKIO_DIR, or else a folder of the hub's cache)."""


Tracker = Annotated[TensorBoard | Wandb | Mlflow | Trackio, Field(discriminator="type")]
