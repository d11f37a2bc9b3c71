"""A model's folder: found or downloaded, checked to be safe to read, and fingerprinted.

Only safetensors and text files are ever read. Pickled weights, adapters, and index files that point out of the folder
are refused (storage/weights.py) before transformers sees them.
"""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.config.model import Model
from storage.checkpoints import weights_fingerprint
from storage.errors import UserError
from storage.text import printable
from storage.weights import read_json, weight_files

HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


def resolve(model: Model | Path) -> Path:
    """Return the local folder of `model`; a hub name is downloaded, or found in the hub's cache when offline."""
    if isinstance(model, Path):
        return _existing(model)
    folder = Path(model.path).expanduser()
    if folder.exists() or not HUB_NAME.fullmatch(model.path):
        return _existing(folder)
    return _snapshot(model)


def fingerprint(folder: Path) -> str:
    """sha256 over the names and hashes of the weights in `folder`: what a checkpoint is called everywhere."""
    files = weight_files(folder)
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter: 1 GB/s per thread
        hashes = pool.map(_file_sha256, files)
        return weights_fingerprint({file.name: digest for file, digest in zip(files, hashes)})


def config_hash(folder: Path) -> str:
    """sha256 of config.json, independent of the order of its keys: the same weights compute otherwise under another."""
    config = json.dumps(read_json(folder / "config.json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(config.encode()).hexdigest()


def generation_eos(folder: Path) -> int | list[int] | None:
    """EOS of the generation config, None without one: what `generate` stops at besides the tokenizer's."""
    file = folder / "generation_config.json"
    return read_json(file).get("eos_token_id") if file.exists() else None


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


def _file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
