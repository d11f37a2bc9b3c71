"""A tracker from the command line: its type and settings, every mistake one line."""

import difflib

from pydantic import ValidationError

from pipeline.config.load import apply_settings, section_models
from pipeline.config.trackers import Tracker
from storage.errors import UserError


def tracker_of(kind: str, settings: list[str]) -> Tracker:
    """The tracker `kind` with `key=value` settings. Raises UserError naming the key, and the nearest valid one."""
    models = {model.model_fields["type"].default: model for model in section_models(Tracker)}
    if kind not in models:
        raise UserError(f"track: there is no tracker {kind!r}; {_nearest(kind, list(models))}")
    model = models[kind]
    try:
        return model.model_validate(apply_settings({"type": kind}, settings))
    except ValidationError as error:
        first = error.errors()[0]
    if first["type"] == "value_error":
        raise UserError(" ".join(str(first["ctx"]["error"]).split()))
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        keys = [name for name in model.model_fields if name != "type"]
        raise UserError(f"--set {key}: {kind} has no such key; {_nearest(key, keys)}")
    raise UserError(f"--set {key}: {' '.join(first['msg'].split())}")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
