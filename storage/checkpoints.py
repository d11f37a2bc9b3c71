"""Checkpoints in the store: Hugging Face folders of safetensors, JSON and tokenizer files, put file by file. The output
head of a teacher lies there in the same way.

The folder's name is the hash of all files in it, so two workers whose optimizer states differ never share a folder
and a killed copy is completed, not trusted. The fingerprint hashes the weights alone. Nothing counts a checkpoint
until run.json or a train receipt names its files, a head until the receipts of `hidden` do.
"""

import os
from pathlib import Path

from storage import documents, layout
from storage.errors import IntegrityError, MissingObject, UserError
from storage.objects import TEMP_PREFIX, ObjectStore
from storage.records import CheckpointFiles, StoredFile
from storage.runs import read_manifest, read_run
from storage.shards import checked_path, file_sha256
from storage.weights import is_optimizer, is_weights, weight_files

KEPT_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""Weights, configs, chat template, vocabulary. Pickled weights, code and other safetensors are left behind."""
ROUND_COPY = "round.json"
"""A byte copy of the manifest of the round that ended with this checkpoint."""


def weights_fingerprint(hashes: dict[str, str]) -> str:
    """sha256 over the names and sha256 of the weight files among `hashes` (file name -> sha256)."""
    weights = {name: sha256 for name, sha256 in hashes.items() if is_weights(name)}
    return documents.sha256(documents.dump(weights))


def folder_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of `folder` that a checkpoint keeps. Raises UserError if it is no whole model."""
    if not folder.is_dir():
        raise UserError(f"checkpoint {folder} is not a folder: name one with model.safetensors in it")
    return {path.name: file_sha256(path) for path in _kept(folder)}


def put_checkpoint(store: ObjectStore, run: str, number: int, folder: Path) -> CheckpointFiles:
    """Put `folder` as the student that starts round `number`; a copy that was interrupted is completed."""
    hashes = folder_hashes(folder)
    prefix = layout.checkpoint_prefix(run, number, documents.sha256(documents.dump(hashes)))
    return _put_files(store, prefix, _kept(folder), hashes)


def put_head(store: ObjectStore, run: str, folder: Path) -> CheckpointFiles:
    """Put all files of `folder` as a teacher's output head of `run`; `local_checkpoint` brings it back."""
    paths = sorted(folder.iterdir())
    hashes = {path.name: file_sha256(path) for path in paths}
    return _put_files(store, layout.head_prefix(run, documents.sha256(documents.dump(hashes))), paths, hashes)


def _put_files(store: ObjectStore, prefix: str, paths: list[Path], hashes: dict[str, str]) -> CheckpointFiles:
    files = []
    for path in paths:
        file = StoredFile(prefix + path.name, path.stat().st_size, hashes[path.name])
        store.put_if_absent(file.key, path)
        checked_path(store, file.key, file.size, file.sha256)
        files.append(file)
    return CheckpointFiles(prefix, weights_fingerprint(hashes), files)


def model_files(files: CheckpointFiles) -> dict[str, str]:
    """Key -> sha256 of what a model is loaded from: for `inputs` of what reads a checkpoint and no optimizer."""
    return {file.key: file.sha256 for file in files.files if not is_optimizer(file.key.removeprefix(files.prefix))}


def local_checkpoint(store: ObjectStore, files: CheckpointFiles, *, optimizer: bool = False) -> Path:
    """A local folder with the checkpoint and nothing else, sizes and sha256 checked once per process.

    The optimizer's state, twice the size of the weights, is brought here and checked only where it is going to be
    read: `optimizer`. A file that was planted beside the weights is refused: loaders look for adapters, code and
    further weights.
    """
    names = {file.key: file.key.removeprefix(files.prefix) for file in files.files}
    planted = {info.key.removeprefix(files.prefix) for info in store.list(files.prefix)} - set(names.values())
    paths = [checked_path(store, file.key, file.size, file.sha256) for file in files.files
             if optimizer or not is_optimizer(names[file.key])]
    if not paths:
        raise MissingObject(files.prefix)
    folder = paths[0].parent
    planted |= set(os.listdir(folder)) - set(names.values())  # links too, which no list shows
    planted = sorted(name for name in planted - {ROUND_COPY} if not name.startswith(TEMP_PREFIX))
    if planted:
        raise IntegrityError(f"{files.prefix}{planted[0]} lies in a checkpoint that does not name it: remove it",
                             "foreign")
    return folder


def starting_checkpoint(store: ObjectStore, run: str, number: int) -> CheckpointFiles:
    """The student that starts round `number`: run.json's for round 0, the previous round's output after that."""
    if number == 0:
        document = read_run(store, run).get("student_checkpoint")
        return CheckpointFiles.from_dict(document, f"{layout.run_json(run)}: student_checkpoint")
    previous = read_manifest(store, run, number - 1)
    if previous is None:
        raise UserError(f"round {number} of {run} cannot start: round {number - 1} is not committed; finish it first")
    return previous.checkpoint_out


def _kept(folder: Path) -> list[Path]:
    """The model's weights, the optimizer's state, and the text files beside them."""
    weights = weight_files(folder)
    others = (path for path in folder.iterdir() if path.suffix in KEPT_SUFFIXES and path.is_file()
              and not is_weights(path.name) and path.name != ROUND_COPY and not path.name.startswith("."))
    return sorted([*weights, *others], key=lambda path: path.name)
