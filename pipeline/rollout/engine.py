"""What writes rollouts: the interface every engine has, in token ids and NumPy arrays.

An engine may batch, reorder and interleave as it likes; rollout i depends on its own prompt, seed and the settings
alone (up to float noise), and comes back in place i.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.config.model import Engine, Model, Rollout

OnFinished = Callable[[int, int], None]
"""on_finished(rollouts finished, rollouts in all)."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. A `top_p` near 0 is greedy decoding."""

    temperature: float
    top_p: float
    max_new_tokens: int
    vocabulary: int
    """Ids 0 .. vocabulary - 1 may be drawn, and log-probs are normalised over them; a padded head has more rows."""
    stop_ids: tuple[int, ...]
    """Drawing one of these ends a rollout; it stays as its last token."""


@dataclass(frozen=True)
class Generations:
    """N rollouts, flat: the tokens of rollout i are `[offsets[i], offsets[i + 1])` of the flat arrays."""

    offsets: np.ndarray
    """int64 [N + 1]."""
    token_ids: np.ndarray
    """int32."""
    log_probs: np.ndarray
    """float32, nats, raw: temperature 1 over the vocabulary."""
    sampling_log_probs: np.ndarray
    """float32, nats, of the density that was drawn from: temperature applied, renormalised over the nucleus."""
    finish_reasons: tuple[str, ...]
    """stop | length, one per rollout."""

    def tokens(self, index: int) -> np.ndarray:
        """Token ids of one rollout."""
        return self.token_ids[self.offsets[index]:self.offsets[index + 1]]

    def texts(self, tokenizer) -> tuple[list[str], list[str]]:
        """All rollouts as text: as they are, and without special tokens, for grading."""
        ids = [self.tokens(i).tolist() for i in range(len(self.offsets) - 1)]
        whole, plain = ([as_text(tokenizer, each, plain) for each in ids] for plain in (False, True))
        return whole, plain


def as_text(tokenizer, token_ids: list[int], plain: bool) -> str:
    """Token ids decoded as they are, or `plain`: without special tokens, for grading."""
    return tokenizer.decode(token_ids, skip_special_tokens=plain, clean_up_tokenization_spaces=False)


class RolloutEngine(Protocol):
    """A loaded student."""

    name_and_version: str

    def generate(self, prompts: Sequence[np.ndarray], seeds: Sequence[int], sampling: Sampling,
                 on_finished: OnFinished | None = None) -> Generations:
        """One rollout per prompt (int token ids) and seed; n samples of a prompt are n entries that share it."""


def sampling_of(rollout: Rollout, document: dict) -> Sampling:
    """The config's settings, over the vocabulary that run.json says both models share."""
    facts, vocabulary = document["student"], document["vocabulary"]["shared"]
    return Sampling(rollout.temperature, rollout.top_p, rollout.max_new_tokens, vocabulary, stop_ids(facts, vocabulary))


def stop_ids(facts: dict, vocabulary: int) -> tuple[int, ...]:
    """EOS of the tokenizer and of the generation config (`facts` of pipeline/models), sorted."""
    generation = facts["generation_eos_token_id"]
    found = {facts["eos_token_id"], *(generation if isinstance(generation, list) else [generation])}
    return tuple(sorted(token_id for token_id in found if token_id is not None and token_id < vocabulary))


def open_engine(settings: Engine, model: Model, folder: Path) -> RolloutEngine:
    """Load the weights in `folder`, run as `model` says. The last one stays loaded: shards of a round share it."""
    weights = [(file.name, file.stat()) for file in sorted(folder.glob("*.safetensors"))]
    return _open(settings, model, folder, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in weights))


@lru_cache(maxsize=1)
def _open(settings: Engine, model: Model, folder: Path, _weights: tuple) -> RolloutEngine:
    from pipeline.models import load_model
    from pipeline.rollout.transformers_engine import TransformersEngine

    loaded = load_model(folder, dtype=model.dtype, attention=model.attention,
                        trust_remote_code=model.trust_remote_code)
    return TransformersEngine(loaded, settings.batch_size)
