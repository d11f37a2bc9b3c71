"""Drawing inside vLLM as the transformers engine draws: the same numbers, the same nucleus, the same log-probs.

vLLM's own sampler could not give what a rollout needs: it returns either raw log-probs or those of the density that
was drawn from, normalises over padded rows of the head, and its random numbers depend on the device's generator. Here
a logits processor draws by sampling.py and the counter of (seed, position), and hands vLLM, which decodes greedily, a
row that holds nothing but the result:

    row = -inf everywhere, row[y] = -log p(y), row[y + 1 mod V] = log p_sampling(y)

so the greedy choice is y. With `logprobs_mode = "processed_logits"` and two log-probs per token both numbers come back
as they are, in float32. -log p(y) >= 0 >= log p_sampling(y), and where both are 0 the second one is left out: -inf
stands for 0. A row whose numbers are NaN gets +inf at y: the caller sees it.

Shapes: B requests of a step, V rows of the head.
"""

import numpy as np
import torch

from pipeline.rollout.sampling import draw
from pipeline.streams import GOLDEN, uniforms

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor
except ImportError:  # vLLM finds the class by its name, so it is defined also where there is none
    LogitsProcessor = object

KEY = "opd"
"""Of SamplingParams.extra_args: [seed, temperature, top_p, vocabulary, forced tokens or None]."""


def params(seed: int, temperature: float, top_p: float, vocabulary: int, forced: list[int] | None = None,
           **others):
    """vLLM's SamplingParams for one rollout; `forced` tokens are taken instead of being drawn."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, logprobs=2, flat_logprobs=True, detokenize=False,
                          extra_args={KEY: [seed, temperature, top_p, vocabulary, forced]}, **others)


def read(drawn: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Raw and sampling log-probs, float32, from vLLM's numbers for the drawn token and for the other one."""
    with np.errstate(invalid="ignore"):
        raw = np.where(np.isposinf(drawn), np.float32(np.nan), -drawn)
    return raw.astype(np.float32), np.where(np.isneginf(other), 0, other).astype(np.float32)


class Draw(LogitsProcessor):
    """Draws for the requests of a step; each has its own seed, and all of a step the same settings."""

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool):
        self.requests: dict[int, tuple[list, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """The processor decides about the argmax."""
        return False

    def update_state(self, batch_update) -> None:
        """Follow the requests to their places in the batch; vLLM appends to each one's list of drawn tokens."""
        from vllm.v1.sample.logits_processor.builtin import process_dict_updates

        process_dict_updates(self.requests, batch_update, lambda asked, _, drawn: (asked.extra_args[KEY], drawn))

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw one token per row of `logits` [B, V]; returns the rows that say which and how likely it was."""
        asked = [self.requests[index] for index in range(len(logits))]
        (_, temperature, top_p, vocabulary, forced), _ = asked[0]
        if forced is not None:
            return _said(logits, *_forced(logits[:, :vocabulary], asked), vocabulary)
        seeds_B = np.array([settings[0] for settings, _ in asked], np.uint64)
        uniform_B = torch.from_numpy(uniforms_at(seeds_B, [len(drawn) for _, drawn in asked])).to(logits.device)
        return _said(logits, *draw(logits[:, :vocabulary], uniform_B, temperature, top_p), vocabulary)


def uniforms_at(seeds_B: np.ndarray, positions_B) -> np.ndarray:
    """float64 [B]: output number positions_B[b] of the stream that starts at seeds_B[b]."""
    with np.errstate(over="ignore"):
        return uniforms(seeds_B + np.asarray(positions_B, np.uint64) * GOLDEN, 1)[:, 0]


def _forced(logits_BV: torch.Tensor, asked: list) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The next given token of each row; one that is complete (a step too many) gets its last token again."""
    ids = [forced[min(len(drawn), len(forced) - 1)] for (*_, forced), drawn in asked]
    ids_B = torch.tensor(ids, device=logits_BV.device)
    raw_B = logits_BV.log_softmax(-1).gather(1, ids_B[:, None])[:, 0]
    return ids_B, raw_B, raw_B


def _said(logits, ids_B, raw_B, sampling_B, vocabulary: int) -> torch.Tensor:
    logits.fill_(float("-inf"))
    broken_B = ~(raw_B.isfinite() & sampling_B.isfinite())
    first_B = torch.where(broken_B, torch.inf, -raw_B.clamp(max=0))
    second_B = torch.where(broken_B | (sampling_B >= 0), -torch.inf, sampling_B)
    logits.scatter_(1, ((ids_B + 1) % vocabulary)[:, None], second_B[:, None])
    return logits.scatter_(1, ids_B[:, None], first_B[:, None])
