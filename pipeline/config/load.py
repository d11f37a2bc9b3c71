"""Reading a config: TOML file, then `--set` settings, then strict validation with one-line errors.

    config = load_config(Path("examples/gsm8k.toml"), ["rollout.top_p=0.95", "objective.type=sampled_token"])
"""

import difflib
import tomllib
import typing
from pathlib import Path

from pydantic import BaseModel, ValidationError

from pipeline.config.model import RunConfig, with_default_types
from storage.errors import ConfigError

MAX_BYTES = 1 << 20
"""A config is a page of text; anything larger is a mistaken argument."""


def load_config(path: Path, settings: list[str] = ()) -> RunConfig:
    """Read and validate `path` with `settings` applied. Raises ConfigError, one line, naming the key."""
    document = apply_settings(read_toml(path), settings)
    return validate(document, where=str(path))


def read_toml(path: Path) -> dict:
    """The TOML document at `path`. Raises ConfigError for anything that is not one."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"config {path}: larger than {MAX_BYTES} bytes, so not a config; name a .toml file")
        document = tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config {path}: no such file; write one with `opd init`") from None
    except OSError as error:
        raise ConfigError(f"config {path}: cannot be read ({error.strerror}); name a .toml file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"config {path}: not UTF-8 text; name a .toml file") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"config {path}: not valid TOML: {_one_line(error)}") from None
    if not document:
        raise ConfigError(f"config {path}: empty; write one with `opd init`")
    return document


def apply_settings(document: dict, settings: list[str]) -> dict:
    """Return `document` with each `a.b=value` applied; a new `type` drops the keys of the old one.

    Types are applied first, so the order of settings does not matter. Values are TOML; what is not TOML is a string.
    """
    pairs = [_split(setting) for setting in settings]
    pairs.sort(key=lambda pair: pair[0][-1] != "type")
    document = with_default_types(document)
    for keys, value in pairs:
        document = _with(document, keys, value, ".".join(keys))
    return document


def validate(document: dict, where: str) -> RunConfig:
    """`document` as a RunConfig. Raises ConfigError naming the first bad key and the nearest valid one."""
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        first, *others = error.errors()
        more = f" (and {len(others)} more)" if others else ""
        raise ConfigError(f"config {where}: {_explain(first)}{more}") from None


def _split(setting: str) -> tuple[list[str], object]:
    name, equals, text = setting.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {setting}: not of the form a.b=value")
    try:
        return keys, tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return keys, text


def _with(node, keys: list[str], value, whole: str):
    key, *rest = keys
    if isinstance(node, list):
        if not key.isdecimal() or int(key) >= len(node):
            raise ConfigError(f"--set {whole}: {key!r} is not an index of a list of {len(node)}")
        return [(_with(item, rest, value, whole) if rest else value) if i == int(key) else item
                for i, item in enumerate(node)]
    if not isinstance(node, dict):
        raise ConfigError(f"--set {whole}: {key!r} lies below a plain value; check the key")
    if rest:
        return {**node, key: _with(node.get(key, {}), rest, value, whole)}
    if key == "type" and node.get("type") != value:
        return {"type": value}
    return {**node, key: value}


def _explain(error: dict) -> str:
    key = _dotted(error["loc"])
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {key}{_nearest(error['loc'])}"
        case "missing":
            return f"missing key {key}: it has no default, so set it"
        case "union_tag_invalid":
            context = error["ctx"]
            tag, allowed = context["tag"], context["expected_tags"].replace("'", "").split(", ")
            near = difflib.get_close_matches(tag, allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"{key}.type = {tag!r} is not one of {', '.join(allowed)}{hint}"
        case "union_tag_not_found":
            return f"missing key {key}.type: it decides which keys the section has"
        case "value_error":
            return _one_line(error["ctx"]["error"])
        case _:
            return f"{key} = {_short(error['input'])}: {_one_line(error['msg'])}"


def _dotted(location: tuple) -> str:
    """`location` without the union tags that pydantic puts into it."""
    return ".".join(str(part) for part, _ in _walk(location)) or "the document"


def _nearest(location: tuple) -> str:
    steps = _walk(location)
    model = steps[-1][1]
    fields = list(model.model_fields) if model else []
    key, parent = str(location[-1]), [str(part) for part, _ in steps[:-1]]
    near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {'.'.join([*parent, near[0]])}?"
    return f"; valid keys there: {', '.join(fields)}" if fields else ""


def _walk(location: tuple) -> list[tuple]:
    """[(key, model that holds the key or None)] along `location`, tags left out."""
    steps, here = [], RunConfig
    for part in location:
        options = section_models(here)
        tagged = [m for m in options if len(options) > 1 and m.model_fields["type"].default == part]
        if tagged:
            here = tagged[0]
            continue
        model = options[0] if options and isinstance(part, str) else None
        steps.append((part, model))
        if model:
            here = model.model_fields[part].annotation if part in model.model_fields else None
    return steps


def section_models(annotation) -> list[type[BaseModel]]:
    """The sections that a key of this type may hold: one, or the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in section_models(part)]


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _one_line(error) -> str:
    return " ".join(str(error).split())
