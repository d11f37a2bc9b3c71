"""Attention over packed rollouts: each attends to itself alone, without padding and without a mask.

Registered with transformers as `opd_varlen`. On a GPU torch's variable-length kernel, in half precision; elsewhere one
`scaled_dot_product_attention` per rollout, which computes the same and is what tests compare with. A padded table goes
the way of `sdpa`.

Shapes: T tokens of a packed row, H heads and G heads of keys and values, D width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pipeline.models.varlen import causal_attention
from storage.errors import UserError

NAME = "opd_varlen"


def can_pack(model: nn.Module) -> bool:
    """Whether the model's attention is plain: no soft-capping, no sliding windows."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)  # of all layers, where their types are not listed
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    return not getattr(config, "attn_logit_softcapping", None) and set(kinds) == {"full_attention"}


def no_kernel(model: nn.Module, precision: str) -> str | None:
    """Why torch's kernel cannot serve a model on its GPU, if it cannot."""
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if precision != "bfloat16":
        return "on a GPU it needs train.precision = 'bfloat16'"
    if width % 8 or width > 256:
        return f"on a GPU it needs heads whose width is a multiple of 8 and at most 256, here {width}"
    if torch.cuda.get_device_capability(model.device) < (8, 0):
        return "its kernel needs a GPU of compute capability 8.0 or more (A100, L4, H100 and newer)"
    return None


def use_packing(model: nn.Module, asked: str, precision: str, attention: str) -> bool:
    """Decide on train.packing, and let `model` attend that way. Raises UserError where it was asked for and cannot be.

    `auto` packs on a GPU in bfloat16 alone: the kernel has no float32, and without it a padded table is one call.
    """
    on_gpu = model.device.type == "cuda"
    if asked == "padded" or (asked == "auto" and not (on_gpu and precision == "bfloat16" and attention != "eager")):
        return False
    why = no_kernel(model, precision) if on_gpu else None
    if not can_pack(model):
        why = f"{type(model).__name__} caps its attention or slides its window"
    if why:
        if asked == "auto":
            return False
        raise UserError(f"train.packing = 'packed' cannot be: {why}; set train.packing = 'padded'")
    model.set_attn_implementation(NAME)
    return True


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
           cu_seq_lens_q: Tensor | None = None, max_length_q: int | None = None, **options) -> tuple[Tensor, None]:
    """The interface of transformers: [1, H, T, D] and [1, G, T, D] to [1, T, H, D]."""
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    query_THD, key_TGD, value_TGD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    scale = options.get("scaling")
    if query.is_cuda:
        return _kernel(query_THD, key_TGD, value_TGD, cu_seq_lens_q, max_length_q, scale)[None], None
    return _one_by_one(query_THD, key_TGD, value_TGD, cu_seq_lens_q.tolist(), scale)[None], None


def _one_by_one(query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, starts: list[int],
                scale: float | None) -> Tensor:
    parts = []
    for start, end in zip(starts, starts[1:]):
        heads = (tensor[start:end].transpose(0, 1)[None] for tensor in (query_THD, key_TGD, value_TGD))
        parts.append(F.scaled_dot_product_attention(*heads, is_causal=True, scale=scale, enable_gqa=True)[0])
    return torch.cat([part.transpose(0, 1) for part in parts])


def _kernel(query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, starts: Tensor, longest: int,
            scale: float | None) -> Tensor:
    half = [tensor.to(torch.bfloat16) for tensor in (query_THD, key_TGD, value_TGD)]
    return causal_attention(*half, (starts, starts, longest, longest), scale).to(value_TGD.dtype)


def _mask(**options) -> Tensor | None:
    """None where nothing but causality and the bounds of rollouts matters, as in training."""
    return None if options.get("attention_mask") is None else sdpa_mask(**options)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _mask)
