"""A causal language model in two parts: the trunk that gives hidden states, and the head that gives logits.

    z = softcap * tanh(scale * (W h + b) / softcap)        without softcap: scale * (W h + b)

Covers the plain heads (Llama, Mistral, Qwen), tied or not, Gemma's softcap, Cohere's and Granite's scales;
`check_head` compares with the model's own logits, so that a head of another kind is refused and never scored wrongly.

Shapes: N rows, D model width, V rows of the head, B sequences of T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

PROBE_TOKENS = 4
TOLERANCE = {"torch.float32": 1e-4, "torch.bfloat16": 0.05}
"""Largest difference from the model's own logits, relative to the largest of them, by the dtype of the weights."""


@dataclass(frozen=True)
class Head:
    """The map from hidden states to logits. `weight_VD` is the model's own parameter, shared with a tied embedding."""

    weight_VD: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def project(self, hidden_ND: Tensor, vocabulary: int, out: Tensor | None = None) -> Tensor:
        """W h + b over the first `vocabulary` ids, in the weights' dtype, before scale and softcap."""
        import torch

        weight_DV = self.weight_VD[:vocabulary].T
        if self.bias is None:
            return torch.mm(hidden_ND, weight_DV, out=out)
        return torch.addmm(self.bias[:vocabulary], hidden_ND, weight_DV, out=out)

    def finish_(self, projected: Tensor) -> Tensor:
        """Apply scale and softcap in place; give it float32, bfloat16 would round once more."""
        if self.scale != 1.0:
            projected.mul_(self.scale)
        if self.softcap is not None:
            projected.div_(self.softcap).tanh_().mul_(self.softcap)
        return projected

    def logits(self, hidden_ND: Tensor, vocabulary: int | None = None) -> Tensor:
        """Float32 logits. Allocates [N, V]: for few rows."""
        return self.finish_(self.project(hidden_ND, vocabulary or len(self.weight_VD)).float())


def output_head(model: nn.Module) -> Head:
    """Describe the model's head. Raises UserError if it has none that is linear."""
    linear = model.get_output_embeddings()
    weight_VD = getattr(linear, "weight", None)
    if weight_VD is None or weight_VD.dim() != 2:
        raise UserError(f"{type(model).__name__} has no linear output head: use a causal language model")
    config = model.config.get_text_config()
    return Head(weight_VD, getattr(linear, "bias", None), _scale(config), _softcap(config))


def trunk(model: nn.Module) -> Callable[..., Tensor]:
    """Return f(input_ids_BT, position_ids=None) -> hidden_BTD, what the head is applied to."""
    base = model.base_model

    def forward(input_ids_BT: Tensor, position_ids: Tensor | None = None, **options) -> Tensor:
        return base(input_ids=input_ids_BT, position_ids=position_ids, use_cache=False, **options).last_hidden_state

    return forward


def check_head(model: nn.Module) -> None:
    """Raise UserError unless head(trunk(x)) is what the model itself computes for a few tokens."""
    import torch

    head = output_head(model)
    ids_1T = torch.arange(PROBE_TOKENS, device=head.weight_VD.device)[None] % len(head.weight_VD)
    with torch.no_grad():
        expected_TV = model(input_ids=ids_1T, use_cache=False).logits[0].float()
        ours_TV = head.logits(trunk(model)(ids_1T)[0])
    largest = (ours_TV - expected_TV).abs().max() if ours_TV.shape == expected_TV.shape else torch.inf
    if not largest <= TOLERANCE[str(head.weight_VD.dtype)] * expected_TV.abs().max():
        raise UserError(f"{type(model).__name__} computes its logits in a way that pipeline/models/head.py does not "
                        f"describe (they differ by {float(largest):.3g}): use another model, or add its head there")


def _scale(config) -> float:
    """Cohere multiplies, Falcon-H1 too; Granite divides; MiniCPM3 divides the hidden states."""
    if getattr(config, "logits_scaling", None):
        return 1.0 / config.logits_scaling
    for name in ("logit_scale", "lm_head_multiplier"):
        if getattr(config, name, None):
            return float(getattr(config, name))
    return 1.0


def _softcap(config) -> float | None:
    return getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
