"""A model's folder: found or downloaded, checked to be safe to read, and fingerprinted.

Only safetensors and text files are ever read. Pickled weights, and index files that point out of the folder, are
refused before transformers sees them.
"""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.config.model import Model
from storage.checkpoints import is_weights, weights_fingerprint
from storage.errors import UserError
from storage.text import printable

HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def resolve(model: Model | Path) -> Path:
    """Return the local folder of `model`; a hub name is downloaded, or found in the hub's cache when offline."""
    if isinstance(model, Path):
        return _existing(model)
    folder = Path(model.path).expanduser()
    if folder.exists() or not HUB_NAME.fullmatch(model.path):
        return _existing(folder)
    return _snapshot(model)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers will load. Raises UserError if one is missing or out of the folder."""
    index = folder / INDEX
    names = _indexed_names(index) if index.exists() else [WEIGHTS]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(_no_weights(folder, missing[0]))
    return [folder / name for name in names]


def fingerprint(folder: Path) -> str:
    """sha256 over the names and hashes of the weights in `folder`: what a checkpoint is called everywhere."""
    weight_files(folder)
    files = sorted(file for file in folder.iterdir() if is_weights(file.name))
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter: 1 GB/s per thread
        hashes = pool.map(_file_sha256, files)
        return weights_fingerprint({file.name: digest for file, digest in zip(files, hashes)})


def read_json(file: Path) -> dict:
    """A small JSON object of a model's folder. Raises UserError if it is missing or not one."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{file.parent} is no model folder: it has no {file.name}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {printable(str(error))}; download the model again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object: download the model again")
    return content


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"model folder {printable(str(folder))} {what}: give a folder with config.json and "
                        "safetensors weights, or a hub name such as Qwen/Qwen2.5-7B-Instruct")
    return folder


def _snapshot(model: Model) -> Path:
    from huggingface_hub import snapshot_download

    patterns = DOWNLOADED + (["*.py"] if model.trust_remote_code else [])
    try:
        return Path(snapshot_download(model.path, revision=model.revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # no such repository or revision, gated, or offline
        return _cached_snapshot(model, error)


def _cached_snapshot(model: Model, error: Exception) -> Path:
    """What the cache holds: some releases of the hub's client want to list a pinned commit online even so."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model.path, revision=model.revision, local_files_only=True))
    except (OSError, ValueError):
        reason = printable(str(error).strip().split("\n")[0])
        raise UserError(f"model {model.path} (revision {model.revision or 'main'}) is neither a folder here nor to be "
                        f"had from the hub: {reason}; check the name, HF_TOKEN, or the connection") from error


def _indexed_names(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} names no weights: download the model again")
    names = {name for name in weight_map.values() if isinstance(name, str)}
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index} names '{printable(name)}', which is not a safetensors file of that folder: "
                            "refused")
    return sorted(names)


def _no_weights(folder: Path, missing: str) -> str:
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED)
    if pickled:
        return (f"{folder} has pickled weights only ({printable(pickled[0])}), and reading those runs code: convert "
                "them with save_pretrained, which writes safetensors")
    return f"{folder} has no {printable(missing)}: download the model again"


def _file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
