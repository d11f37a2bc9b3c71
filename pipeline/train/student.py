"""The model being trained, as a trunk that gives hidden states and a head that is never applied to all rows.

Dropout stays off: p_now is compared with the density that wrote the rollouts. The embedding's gradient is added to
weight.grad in place, row by row, where autograd would build a dense [V, D] matrix per forward pass.

Shapes: B rollouts and T tokens of a forward pass, M rows of it, D model width, V vocabulary.
"""

import contextlib

import torch
from torch import nn

from pipeline.models import output_head, trunk
from pipeline.train.support_head import embed


class Student:
    """A causal language model with float32 weights, and how to run it."""

    def __init__(self, model: nn.Module, *, precision: str = "float32", vocabulary: int | None = None):
        """`precision` is of the trunk's matrix products; `vocabulary`: ids both models share, all if None."""
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters()), "master weights are float32"
        use_in_place_embedding(model)
        self.model = model.eval()
        self.head = output_head(model)
        self.vocabulary = vocabulary
        self.device = next(model.parameters()).device
        self._trunk = trunk(model)
        self._autocast = precision == "bfloat16"

    def hidden(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        """Hidden states before the head, [B * T, D]."""
        input_ids_BT = input_ids_BT.to(self.device, non_blocking=True)
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self._autocast else contextlib.nullcontext()
        with autocast:
            hidden_BTD = self._trunk(input_ids_BT)
        return hidden_BTD.flatten(0, 1)

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
