"""A config as TOML text: every key with its value, and what it means as a comment."""

import json

from pydantic import BaseModel

from pipeline.config.load import section_models
from pipeline.config.model import RunConfig


def to_toml(document: dict, *, comments: bool = False) -> str:
    """`document` (a RunConfig as plain data) as TOML; with `comments`, each key's documentation above it."""
    lines = _section(document, RunConfig, [], comments)
    return "\n".join(lines).strip() + "\n"


def _section(document: dict, model: type[BaseModel] | None, path: list[str], comments: bool) -> list[str]:
    plain = {k: v for k, v in document.items() if v is not None and not _is_section(v)}
    lines = []
    for key, value in plain.items():
        lines += _comment(model, key, comments) + [f"{key} = {_value(value)}"]
    for key, value in document.items():
        child = _child(model, key, value)
        name = ".".join([*path, key])
        if isinstance(value, dict):
            header = [f"\n[{name}]"] if any(not _is_section(each) for each in value.values()) else []
            lines += header + _section(value, child, [*path, key], comments)
        elif _is_section(value):
            for item in value:
                lines += [f"\n[[{name}]]", *_section(item, _child(model, key, item), [*path, key], comments)]
    return lines


def _is_section(value) -> bool:
    return isinstance(value, dict) or isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _child(model, key: str, value) -> type[BaseModel] | None:
    if model is None or key not in model.model_fields or not isinstance(value, dict):
        return None
    options = section_models(model.model_fields[key].annotation)
    tagged = (m for m in options if "type" in m.model_fields and m.model_fields["type"].default == value.get("type"))
    return next(tagged, options[0] if options else None)


def _comment(model, key: str, comments: bool) -> list[str]:
    text = model.model_fields[key].description if comments and model and key in model.model_fields else None
    return [f"# {' '.join(text.split())}"] if text else []


def _value(value) -> str:
    """A TOML value; JSON's strings, numbers, booleans and lists are TOML's too."""
    return json.dumps(value, ensure_ascii=False)
