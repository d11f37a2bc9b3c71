"""What writes rollouts: the interface every engine has, in token ids and NumPy arrays.

An engine may batch, reorder and interleave as it likes; rollout i depends on its own prompt, seed and the settings
alone (up to float noise), and comes back in place i.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.config.model import Engine, Model, Rollout
from pipeline.kept import on_drop
from storage import scratch
from storage.errors import UserError
from storage.weights import read_json

NO_ARCHITECTURE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
"""Keys of a config.json that decide nothing where dtype is given."""
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
    """A loaded student. One that outlives a stage (vLLM) also has `reload(folder)`, `rest()` and `close()`, and says
    whether it is `alive` or `resting`; one of another library has `proof`, what showed that it has the weights."""

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


def checked(generations: Generations) -> Generations:
    """The same. Raises UserError for log-probs that are no numbers."""
    if not np.isfinite(generations.log_probs).all():
        raise UserError("the student gives logits that are no numbers (NaN): its training diverged or its weights "
                        "are damaged; start the round from an earlier checkpoint, or lower train.learning_rate (with "
                        "vLLM it may be rollout.temperature, too low for these logits)")
    if not np.isfinite(generations.sampling_log_probs).all():
        raise UserError("the student's logits divided by rollout.temperature are no numbers any more: raise "
                        "rollout.temperature")
    return generations


@dataclass
class _Opened:
    """The engine of this process, and what it was opened for."""

    engine: RolloutEngine
    what: tuple
    weights: tuple


_opened: _Opened | None = None


def open_engine(settings: Engine, model: Model, folder: Path) -> RolloutEngine:
    """The engine that `settings` name, with the weights in `folder`, run as `model` says.

    This process keeps the last one: shards of a round share it, and one that can be given other weights in place
    (vLLM) is, where the architecture is the same. Another one is closed first.
    """
    global _opened
    what = settings, model.dtype, model.attention, model.trust_remote_code, _architecture(folder)
    weights = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns)
                    for file in sorted(folder.glob("*.safetensors")))
    engine = _opened.engine if _opened and _opened.what == what and getattr(_opened.engine, "alive", True) else None
    if engine is not None and _opened.weights == weights and not getattr(engine, "resting", False):
        return engine
    if hasattr(engine, "reload"):
        engine.reload(folder)
    else:
        close()
        engine = _start(settings, model, folder)
    _opened = _Opened(engine, what, weights)
    return engine


def rest() -> None:
    """Let the engine of this process give its device back after a stage; `open_engine` wakes it. Of copies of what lies
    on S3 only its own weights stay: a reload is proved against them."""
    if _opened is not None and hasattr(_opened.engine, "rest"):
        _opened.engine.rest()
        scratch.empty("s3", keep=_opened.engine.folder)


def close() -> None:
    """Forget the engine of this process, and end what belongs to it."""
    global _opened
    if _opened is not None and hasattr(_opened.engine, "close"):
        _opened.engine.close()
    _opened = None


on_drop(close)


def _start(settings: Engine, model: Model, folder: Path) -> RolloutEngine:
    if settings.type == "vllm":
        from pipeline.rollout.vllm_engine import VllmRollouts

        return VllmRollouts(settings, model, folder)
    if settings.type == "vllm_server":
        from pipeline.rollout.server_engine import ServerEngine

        return ServerEngine(settings, model, folder)
    from pipeline.models import load_model
    from pipeline.rollout.transformers_engine import TransformersEngine

    loaded = load_model(folder, dtype=model.dtype, attention=model.attention,
                        trust_remote_code=model.trust_remote_code)
    return TransformersEngine(loaded, settings.batch_size)


def _architecture(folder: Path) -> str:
    """What must be equal for an engine to take the weights in `folder`: all of config.json that says how to compute."""
    config = read_json(folder / "config.json")
    return json.dumps({key: config[key] for key in sorted(config) if key not in NO_ARCHITECTURE})
