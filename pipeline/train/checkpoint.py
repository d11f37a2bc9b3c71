"""A student on disk: a Hugging Face folder with its optimizer's state.

    model.safetensors (or numbered parts and their index), config.json, tokenizer and generation files,
    optimizer.safetensors

Promises: the same weights and state give the same bytes, whatever the folder's path; nothing is pickled. Tokenizer,
chat template and generation config are the starting checkpoint's, byte for byte: training does not touch them.
"""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from pipeline.train.optimizer import save_state, whole

MAX_PART = "4GB"
"""Of one weight file: object stores take at most 5 GB in one put."""
NOT_CARRIED = {"config.json", "round.json", "model.safetensors.index.json", "lora.json"}
"""Files of the starting checkpoint that the new one writes itself, or that belong to the old one."""
CARRIED_SUFFIXES = {".json", ".jinja", ".txt", ".model"}


def write_checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer, run_steps: int, start: Path,
                     folder: Path) -> None:
    """Write `model` and its optimizer into the empty `folder`; the rest comes from `start`."""
    write_weights(model, folder)
    save_state(optimizer, model, run_steps, folder)
    carry(start, folder)


def write_weights(model: nn.Module, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write config and weights: the model's own, or others under the names that it has on disk."""
    generation, model.generation_config = model.generation_config, GenerationConfig()
    model.save_pretrained(folder, state_dict=weights, max_shard_size=MAX_PART)
    model.generation_config = generation
    (folder / "generation_config.json").unlink(missing_ok=True)
    _drop_paths(folder / "config.json")


def whole_weights(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The state dict on the CPU, gathered where it is cut over ranks, a tensor at a time; {} where it is not kept.
    Tied weights are one tensor."""
    weights, seen = {}, {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            full = whole(value)
            seen[id(value)] = full if keep else None
        weights[name] = seen[id(value)]
    return weights if keep else {}


def carry(start: Path, folder: Path) -> None:
    """Copy what training does not touch."""
    for path in sorted(start.iterdir()):
        if path.suffix in CARRIED_SUFFIXES and path.name not in NOT_CARRIED:
            shutil.copyfile(path, folder / path.name)


def _drop_paths(config: Path) -> None:
    """Rewrite config.json without the folder it was loaded from, keys sorted."""
    document = json.loads(config.read_text())
    document.pop("_name_or_path", None)
    config.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
