"""Which files of a Hugging Face folder are the model's weights: exactly those that transformers will load.

`model.safetensors`, or the files that `model.safetensors.index.json` names. Further safetensors in the folder
(`consolidated.safetensors`, other variants) are not loaded, so they are neither fingerprinted nor kept. An adapter is
refused: transformers would lay it over the weights where peft is installed, and not where it is not.
"""

import json
from pathlib import Path

from storage.errors import UserError
from storage.text import printable

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors")
OPTIMIZER_PREFIX = "optimizer"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def is_optimizer(name: str) -> bool:
    """Whether a checkpoint's file holds the optimizer's state."""
    return name.startswith(OPTIMIZER_PREFIX)


def is_weights(name: str) -> bool:
    """Whether a file that a checkpoint keeps holds model weights."""
    return name.endswith(".safetensors") and not is_optimizer(name)


def weight_files(folder: Path) -> list[Path]:
    """The weights in `folder`, sorted. Raises UserError if one is missing or out of the folder, and for adapters."""
    adapter = next((name for name in ADAPTERS if (folder / name).exists()), None)
    if adapter:
        raise UserError(f"{folder} holds an adapter ({adapter}), which is no model of its own: merge it "
                        "(merge_and_unload) and save_pretrained the result")
    index = folder / INDEX
    names = _indexed_names(index) if index.exists() else [WEIGHTS]
    if names != [WEIGHTS] and (folder / WEIGHTS).exists():
        raise UserError(f"{folder} has {WEIGHTS} and an index that names {printable(names[0])}: which of them are the "
                        "weights is not clear; remove the one that is not meant")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(_no_weights(folder, missing[0]))
    return [folder / name for name in names]


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


def _indexed_names(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} names no weights: download the model again")
    names = {name for name in weight_map.values() if isinstance(name, str)}
    for name in names:
        if Path(name).name != name or not is_weights(name):
            raise UserError(f"{index} names '{printable(name)}', which is not a safetensors file of that folder: "
                            "refused")
    return sorted(names)


def _no_weights(folder: Path, missing: str) -> str:
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED)
    if pickled:
        return (f"{folder} has pickled weights only ({printable(pickled[0])}), and reading those runs code: convert "
                "them with save_pretrained, which writes safetensors")
    return f"{folder} has no {printable(missing)}: download the model again"
