"""A model's trunk over many rollouts as one flat sequence: every prompt once, its samples as branches, no padding.

    tokens      prompt | sample | sample | ... | prompt | sample | ...     positions of a sample go on behind its prompt
    attention   a sample's token sees its prompt and the sample up to itself, a prompt's token the prompt up to itself

All other layers of a decoder work on single tokens, so attention alone has to know (packed_attention.py). Whether a
model can be run like this is proven once per model, against its own plain pass over a few tokens (`why_padded`). One
that cannot is run padded: slower, the same values.

Shapes: T tokens of a batch, Q tokens of a segment, S segments, D model width, B sequences of L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.models import output_head, trunk
from pipeline.ragged import starts_of
from pipeline.score.host import to_device
from pipeline.score.packed_attention import STANDS_FOR, Packing, our_attention
from pipeline.score.segments import Segments

LAYERS = {"full_attention", "sliding_attention"}
MOVING_ROPE = {"dynamic", "longrope"}
"""Rotations that depend on the longest sequence of a batch."""
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Largest difference of a hidden state from the plain pass, relative to the largest of them."""
SHARE_OF_PROMPT = 0.2
"""And relative to what the prompt changes in a sample: where it changes little, rounding could hide a mistake."""


class PackedTrunk:
    """hidden_TD = trunk(input_ids_T, packing), packed where the model can be, padded otherwise."""

    def __init__(self, model: nn.Module, padded_tokens: int):
        """`padded_tokens` bounds the padded way's forward passes."""
        self.model, self.forward, self.padded = model, trunk(model), why_padded(model) is not None
        self.padded_tokens = 1 if _moving_rope(model.config) else padded_tokens

    def __call__(self, input_ids_T: Tensor, packing: Packing) -> Tensor:
        run = self._padded if self.padded else self._packed
        return run(input_ids_T, packing)

    def _packed(self, input_ids_T: Tensor, packing: Packing) -> Tensor:
        return _packed(self.model, self.forward, input_ids_T, packing)

    def _padded(self, input_ids_T: Tensor, packing: Packing) -> Tensor:
        hidden_TD = None
        for places_BL, real_BL in _padded_batches(packing.segments, self.padded_tokens):
            places, real = (torch.from_numpy(each).to(input_ids_T.device) for each in (places_BL, real_BL))
            found_BLD = self.forward(input_ids_T[places] * real)
            hidden_TD = found_BLD.new_empty(len(input_ids_T), found_BLD.shape[-1]) if hidden_TD is None else hidden_TD
            hidden_TD[places[real]] = found_BLD[real]
        return hidden_TD


def _packed(model: nn.Module, forward, input_ids_T: Tensor, packing: Packing) -> Tensor:
    positions_T = to_device(packing.segments.positions(), input_ids_T.device)
    with our_attention(model):
        return forward(input_ids_T[None], positions_T[None], packing=packing)[0]


def _padded_batches(segments: Segments, tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(places_BL, real_BL): sequences out of the flat one, padded on the right to their longest; `tokens` at most."""
    keys, seen_S = segments.keys(), segments.length_S + segments.before_S
    first_key_S, leaves = starts_of(seen_S), segments.leaves()
    leaves = leaves[np.argsort(-seen_S[leaves], kind="stable")]
    while len(leaves):
        longest = int(seen_S[leaves[0]])
        batch, leaves = np.split(leaves, [max(1, tokens // longest)])
        real_BL = np.arange(longest) < seen_S[batch, None]
        yield keys[np.where(real_BL, first_key_S[batch, None] + np.arange(longest), first_key_S[batch, None])], real_BL


_REASONS: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()


def why_padded(model: nn.Module) -> str | None:
    """Why a model is run with padding, None for one that is packed. Tried once per model."""
    if model not in _REASONS:
        _REASONS[model] = _unknown_part(model) or _difference(model)
    return _REASONS[model]


def _unknown_part(model: nn.Module) -> str | None:
    """What a few tokens would not show."""
    config = model.config.get_text_config()
    if config is not model.config or config._attn_implementation not in STANDS_FOR:
        return f"its attention is {config._attn_implementation}"
    unknown = set(getattr(config, "layer_types", None) or ()) - LAYERS
    if unknown:
        return f"its layers are of type {sorted(unknown)[0]}"
    if getattr(config, "attention_chunk_size", None):
        return "its attention is cut into chunks"
    rope = _moving_rope(config)
    return rope and f"its rotation is {rope}"


def _moving_rope(config) -> str | None:
    """Such models read every rollout alone."""
    rope = str(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None))
    return next((kind for kind in sorted(MOVING_ROPE) if f"'{kind}'" in rope), None)


PROBE = Segments(np.array([5, 3, 1, 2, 4]), np.array([0, 0, 0, 3, 3]))
"""A prompt of 5 tokens with samples of 3 and 1, and one of 2 with a sample of 4."""


@torch.inference_mode()
def _difference(model: nn.Module) -> str | None:
    """Compare every segment's hidden states with the plain pass over its sequence."""
    forward, weight_VD = trunk(model), output_head(model).weight_VD
    packing = Packing(PROBE, weight_VD.device)
    input_ids_T = torch.arange(1, 1 + int(PROBE.length_S.sum()), device=weight_VD.device) % len(weight_VD)
    try:
        found_TD = _packed(model, forward, input_ids_T, packing).float()
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:  # a pass of another make
        return f"its pass cannot be packed ({type(error).__name__})"
    config = model.config
    if len(packing.windows) != config.num_hidden_layers:
        return f"it calls attention {len(packing.windows)} times in {config.num_hidden_layers} layers"
    if _window(config) not in [None, *packing.windows]:
        return "its attention is not told the sliding window"
    return _compare(forward, input_ids_T, found_TD, ROUNDING.get(weight_VD.dtype, 0.0))


def _compare(forward, input_ids_T: Tensor, found_TD: Tensor, rounding: float) -> str | None:
    keys, seen_S = PROBE.keys(), PROBE.length_S + PROBE.before_S
    for index, first in enumerate(starts_of(seen_S)):
        own = slice(PROBE.start_S[index], PROBE.start_S[index] + PROBE.length_S[index])
        before = int(PROBE.before_S[index])
        plain_QD = forward(input_ids_T[keys[first:first + seen_S[index]]][None])[0, before:].float()
        allowed = rounding * plain_QD.abs().max()
        if before:
            positions = torch.arange(before, int(seen_S[index]), device=input_ids_T.device)
            alone_QD = forward(input_ids_T[own][None], positions[None])[0].float()
            allowed = torch.minimum(allowed, SHARE_OF_PROMPT * (alone_QD - plain_QD).abs().max())
        difference = (found_TD[own] - plain_QD).abs().max()
        if not difference <= allowed:
            return f"packed, its hidden states differ by {float(difference):.3g} from those of its plain pass"
    return None


def _window(config) -> int | None:
    """The sliding window of a model that has such layers."""
    layers = getattr(config, "layer_types", None)
    slides = "sliding_attention" in layers if layers else getattr(config, "use_sliding_window", True)
    return getattr(config, "sliding_window", None) if slides else None

