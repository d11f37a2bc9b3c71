"""The model being trained, as a trunk that gives hidden states and a head that is never applied to all rows.

Dropout stays off, with gradient checkpointing too: p_now is compared with the density that wrote the rollouts. The
embedding's gradient is added to weight.grad in place, row by row, where autograd would build a dense [V, D] matrix per
forward pass.

Shapes: B rollouts and T tokens of a forward pass, M rows of it, D model width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.models import output_head, trunk
from pipeline.train.in_place import embed
from pipeline.train.inputs import Inputs
from pipeline.train.optimizer import Named
from pipeline.transfer import sent
from storage.errors import UserError

if TYPE_CHECKING:
    from pipeline.train.sharded import ShardedModel


class Student:
    """A causal language model with float32 weights, and how to run it."""

    def __init__(self, model: nn.Module, *, precision: str = "float32", vocabulary: int | None = None,
                 gradient_checkpointing: bool = False, sharded: ShardedModel | None = None):
        """`precision` is of the trunk's matrix products; `vocabulary`: ids both models share, all if None; `sharded`:
        how `model` is cut over ranks."""
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters()), "master weights are float32"
        use_in_place_embedding(model)
        self.model = model.eval()
        if gradient_checkpointing:
            checkpoint_layers(model)
        self.head = output_head(model)
        self.vocabulary = vocabulary
        self.device = next(model.parameters()).device
        self.weights: Named = sharded or model
        """What the optimizer trains."""
        self._sharded = sharded
        self._trunk = trunk(model)
        self._autocast = precision == "bfloat16"

    def hidden(self, inputs: Inputs | torch.Tensor) -> torch.Tensor:
        """Hidden states before the head, [B * T, D]; `inputs` may be padded ids alone."""
        inputs = inputs if isinstance(inputs, Inputs) else Inputs(inputs)
        with self._products():
            hidden_BTD = self._trunk(sent(inputs.ids_BT, self.device), **inputs.boundaries(self.device))
        return hidden_BTD.flatten(0, 1)

    def reduce_gradients(self) -> None:
        """Sum over ranks what is not summed yet: once, after a step's last backward pass."""
        if self._sharded is not None:
            self._sharded.reduce_gradients()

    def updated(self) -> None:
        """Let every rank see the optimizer's update."""
        if self._sharded is not None:
            self._sharded.updated()

    def _products(self) -> contextlib.AbstractContextManager:
        """The precision of matrix products. No cache of bfloat16 weights: each is used once per forward pass, and the
        cache would hold a copy of all layers, 2 bytes per parameter, that gradient checkpointing does not."""
        if self._autocast:
            return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
        return contextlib.nullcontext()

    def head_options(self) -> dict:
        """Keyword arguments of the support head's functions."""
        return {"bias": self.head.bias, "scale": self.head.scale, "softcap": self.head.softcap}

    def clear_gradients(self) -> None:
        """Zero the head's and the embedding's gradients in place, so that their memory is kept; drop all others."""
        kept = {id(self.head.weight_VD), id(self.model.get_input_embeddings().weight)}
        for parameter in self.model.parameters():
            if id(parameter) in kept and parameter.grad is not None:
                parameter.grad.zero_()
            else:
                parameter.grad = None


def checkpoint_layers(model: nn.Module) -> None:
    """Let every layer keep its input alone and be computed again in the backward pass.

    transformers checkpoints layers in training mode only. That mode is set on the layers themselves, not on what they
    hold, and the dropout rates that a layer applies itself are set to 0: the forward pass stays that of `eval()`.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or not model.supports_gradient_checkpointing:
        raise UserError(f"{type(model).__name__} has no layers that can be computed again: set "
                        "train.gradient_checkpointing = false, and a smaller train.micro_batch_tokens")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True
        rates = [name for name, value in vars(layer).items() if "drop" in name and isinstance(value, float)]
        vars(layer).update(dict.fromkeys(rates, 0.0))


class InPlaceEmbedding(nn.Embedding):
    """nn.Embedding whose gradient is added to weight.grad row by row; the padding row gets none, as there."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        embeddings = embed(input_ids, self.weight)
        if self.padding_idx is None:
            return embeddings
        return torch.where((input_ids == self.padding_idx)[..., None], embeddings.detach(), embeddings)


def use_in_place_embedding(model: nn.Module) -> None:
    """Replace a plain input embedding, weight and name kept; one with a forward of its own stays."""
    old = model.get_input_embeddings()
    if type(old) is not nn.Embedding or old.max_norm is not None or old.scale_grad_by_freq or old.sparse:
        return
    new = InPlaceEmbedding(old.num_embeddings, old.embedding_dim, old.padding_idx, _weight=old.weight.data)
    new.weight = old.weight
    model.set_input_embeddings(new)
