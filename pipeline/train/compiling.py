"""torch.compile of a student's layers, one after the other: one graph serves all of them."""

import shutil

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from storage.errors import UserError


def compile_layers(model: nn.Module) -> None:
    """Compile each layer at its first pass. Raises UserError where there is no C++ compiler, which torch's CPU code and
    Triton both need."""
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++", "gcc", "clang")):
        raise UserError("train.compile = true needs a C++ compiler (g++ or clang++ on the PATH): install one, or set "
                        "train.compile = false")
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=True)
