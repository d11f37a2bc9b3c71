"""LoRA: an adapter over a frozen base, kept beside the merged student (Hu et al., arXiv 2106.09685).

    merged W = base W + alpha / rank * B A          in float32, on the CPU

A checkpoint that ends a round with train.lora is a whole merged student, which rollouts, scoring and everything else
read like any other, and three files that training alone reads:
    optimizer-adapter.safetensors   A and B, under the names peft gives them on disk
    optimizer.safetensors           their moments
    lora.json                       settings, and the checkpoint that the base is, with its hashes
The next round takes base, adapter and moments from there, not the merged weights, so that rounding of the merged
weights never adds up: it goes on bit for bit. Where lora.json is missing or has other settings than train.lora, and in
a run's first round, a new adapter begins over the starting checkpoint, with a warm-up of its own.

peft is optional: `pip install 'opd-rounds[lora]'`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.config.train import Lora
from pipeline.context import RoundContext
from storage.errors import IntegrityError, UserError
from storage.rounds import CheckpointFiles, local_checkpoint
from storage.weights import read_json

RECORD, WEIGHTS = "lora.json", "optimizer-adapter.safetensors"
PREFIX = "base_model.model."
"""Of peft's names on disk; in memory they have the adapter's name, `default`, in them."""
_PAIR = re.compile(r"\.lora_[AB]\.default\.weight$")


@dataclass(frozen=True)
class Base:
    """What the adapter is laid over."""

    files: CheckpointFiles
    folder: Path
    adapter: Path | None
    """Folder of the adapter that goes on; None for a new one."""


def find_base(context: RoundContext, start: CheckpointFiles, folder: Path) -> Base:
    """The base and the adapter of a round that starts from `start`, which lies in `folder`."""
    lora, record = context.config.train.lora, folder / RECORD
    if lora is None or not context.number or not record.exists():
        return Base(start, folder, None)
    document = read_json(record)
    if document.get("lora") != lora.model_dump(mode="json"):
        return Base(start, folder, None)
    files = CheckpointFiles.from_dict(document.get("base"), f"{start.prefix}{RECORD}: base")
    return Base(files, local_checkpoint(context.store, files), folder)


def goes_on(context: RoundContext, folder: Path) -> bool:
    """Whether the optimizer's state in `folder` is of what this round trains: not in a run's first round, whose student
    may come with the optimizer of the run that made it, and not between an adapter and whole weights, or another
    adapter."""
    lora = context.config.train.lora
    record = read_json(folder / RECORD).get("lora") if (folder / RECORD).exists() else None
    return bool(context.number) and record == (lora and lora.model_dump(mode="json"))


def add_adapter(model: nn.Module, lora: Lora, seed: int) -> None:
    """Lay a new adapter over `model`, in place: B is 0, A is drawn from `seed`, all else frozen."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("train.lora needs peft, which is not installed: pip install 'opd-rounds[lora]', or drop "
                        "train.lora to train all weights") from error
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.target_modules, lora_dropout=0.0,
                        bias="none", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:  # no module has such a name
            line = " ".join(str(error).split())[:200]
            raise UserError(f"train.lora.target_modules = {lora.target_modules!r} does not fit {type(model).__name__}: "
                            f"{line}") from error
    _refuse_others(model, lora)


def _refuse_others(model: nn.Module, lora: Lora) -> None:
    """The support head reads the output head's own weight, and `merged` knows linear layers alone."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if hasattr(module, "base_layer") and (module is head or not isinstance(module.base_layer, nn.Linear)):
            raise UserError(f"train.lora.target_modules = {lora.target_modules!r} names {name}, which cannot be "
                            "adapted here: name linear layers of the decoder, not the embedding or the output head")


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Fill the adapter of `model` from `folder`. Raises IntegrityError if it is of another model."""
    stored, path = load_file(folder / WEIGHTS), folder / WEIGHTS
    for name, parameter in model.named_parameters():
        if not _PAIR.search(name):
            continue
        value = stored.pop(_on_disk(name), None)
        if value is None or value.shape != parameter.shape:
            raise IntegrityError(f"{path} does not fit the model at {name}: it belongs to another checkpoint; "
                                 "run `opd verify`")
        parameter.data.copy_(value)
    if stored:
        raise IntegrityError(f"{path} has {min(stored)}, which the model does not have; run `opd verify`")


def save_adapter(weights: dict[str, Tensor], lora: Lora, base: CheckpointFiles, folder: Path) -> None:
    """Write the adapter among `weights`, and what it is laid over."""
    save_file({_on_disk(name): value.contiguous() for name, value in weights.items() if _PAIR.search(name)},
              folder / WEIGHTS)
    record = {"lora": lora.model_dump(mode="json"), "base": base.as_dict()}
    (folder / RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def merged(weights: dict[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """The weights of the model that base and adapter make together, under the names of the base."""
    whole = {}
    for name, value in weights.items():
        if _PAIR.search(name):
            continue
        a, b = (weights.get(name.replace("base_layer.weight", f"lora_{side}.default.weight")) for side in "AB")
        adapted = name.endswith(".base_layer.weight") and a is not None
        whole[name.replace(".base_layer.", ".")] = value + (b @ a) * (lora.alpha / lora.rank) if adapted else value
    return whole


def _on_disk(name: str) -> str:
    return PREFIX + name.replace(".default.", ".")
