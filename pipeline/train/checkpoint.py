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
from transformers import GenerationConfig

from pipeline.train.optimizer import save_state

MAX_PART = "4GB"
"""Of one weight file: object stores take at most 5 GB in one put."""
NOT_CARRIED = {"config.json", "round.json", "model.safetensors.index.json"}
"""Files of the starting checkpoint that the new one writes itself, or that belong to the old one."""
CARRIED_SUFFIXES = {".json", ".jinja", ".txt", ".model"}


def write_checkpoint(model: torch.nn.Module, optimizer: torch.optim.Optimizer, run_steps: int, start: Path,
                     folder: Path) -> None:
    """Write `model` and its optimizer into the empty `folder`; the rest comes from `start`."""
    generation, model.generation_config = model.generation_config, GenerationConfig()
    model.save_pretrained(folder, max_shard_size=MAX_PART)
    model.generation_config = generation
    (folder / "generation_config.json").unlink(missing_ok=True)
    _drop_paths(folder / "config.json")
    save_state(optimizer, model, run_steps, folder)
    for path in sorted(start.iterdir()):
        if path.suffix in CARRIED_SUFFIXES and path.name not in NOT_CARRIED:
            shutil.copyfile(path, folder / path.name)


def _drop_paths(config: Path) -> None:
    """Rewrite config.json without the folder it was loaded from, keys sorted."""
    document = json.loads(config.read_text())
    document.pop("_name_or_path", None)
    config.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
