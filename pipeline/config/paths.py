"""The paths in a config, told from the names of data sets, models and masks, and made absolute.

A relative path means something only in one folder: a scheduled round may start in another, and two spellings of one
path are one config.
"""

import copy
import os
from collections.abc import Iterator
from pathlib import Path


def absolute(document: dict) -> dict:
    """A config as plain JSON, with each local path that is relative to this folder made absolute."""
    document = copy.deepcopy(document)
    for section, key in _paths(document):
        section[key] = os.path.abspath(Path(section[key]).expanduser())
    return document


def _paths(document: dict) -> Iterator[tuple[dict, str]]:
    """(section, key) of every local path."""
    from pipeline.models.files import HUB_NAME

    if "store" in document and "://" not in document["store"]:
        yield document, "store"
    for model in (document["student"], document["teacher"]):
        if Path(model["path"]).expanduser().exists() or not HUB_NAME.fullmatch(model["path"]):
            yield model, "path"
    benchmarks = (document.get("evaluation") or {}).get("benchmark", [])
    for source in (document["prompts"]["source"], *(benchmark["source"] for benchmark in benchmarks)):
        if source["type"] == "file":
            yield source, "path"
    for mask in document["mask"]:
        if mask["type"] == "sql" and mask["file"].endswith(".sql"):
            yield mask, "file"
    for tracker in document.get("tracker", []):
        if tracker.get("folder"):
            yield tracker, "folder"
