"""What a vLLM server says of one rollout, checked: its answers are somebody else's bytes, and become data.

Shapes: T drawn tokens, L tokens of a prompt and its response.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.rollout.engine import Sampling

LEAST, LARGEST = -9000.0, 1e-5
"""Bounds of a log-prob: vLLM writes -9999 for -inf, and a drawn token has none of that."""


class Malformed(Exception):
    """An answer that cannot be right, in a few words."""


@dataclass(frozen=True)
class Drawn:
    """One rollout."""

    token_ids: np.ndarray
    """int32 [T]."""
    log_probs: np.ndarray
    """float32 [T], raw or processed as the server's mode is."""
    finish_reason: str
    """stop | length."""


def read_completion(answer: dict, prompt: list[int], sampling: Sampling) -> Drawn:
    """The rollout in an answer of /v1/completions. Raises Malformed."""
    choice = only_choice(answer, prompt)
    ids = choice.get("token_ids")
    if not _integers(ids) or not 0 < len(ids) <= sampling.max_new_tokens:
        raise Malformed(f"no list of 1 to {sampling.max_new_tokens} token ids")
    if not all(0 <= each < sampling.vocabulary for each in ids):
        raise Malformed(f"token id {max(ids, key=abs)} where {sampling.vocabulary} tokens are shared")
    logprobs = choice.get("logprobs")
    log_probs = log_prob_array(logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None, len(ids))
    return Drawn(np.array(ids, np.int32), log_probs, _finish_reason(choice.get("finish_reason"), ids, sampling))


def read_prompt_log_probs(answer: dict, tokens: list[int], start: int) -> np.ndarray:
    """float32 [L - start]: the log-probs of tokens[start:] in an answer with prompt_logprobs. Raises Malformed."""
    listed = prompt_positions(only_choice(answer, tokens), len(tokens))
    entries = [position.get(str(token)) for position, token in zip(listed[start:], tokens[start:])]
    return log_prob_array([entry.get("logprob") if isinstance(entry, dict) else None for entry in entries],
                          len(tokens) - start)


def only_choice(answer: dict, prompt: list[int]) -> dict:
    """The one choice of an answer, which must have read exactly `prompt`."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Malformed("not exactly one choice")
    if choices[0].get("prompt_token_ids") != prompt:
        raise Malformed("the prompt's token ids are not those that were sent")
    return choices[0]


def prompt_positions(choice: dict, length: int) -> list[dict]:
    """One dict per token of the prompt: token id, as text, to its entry. The first is empty: nothing predicts it."""
    listed = choice.get("prompt_logprobs")
    if not isinstance(listed, list) or len(listed) != length or listed[0] not in (None, {}):
        raise Malformed(f"prompt_logprobs are not those of {length} tokens")
    if not all(isinstance(position, dict) and position for position in listed[1:]):
        raise Malformed("prompt_logprobs lack a position")
    return [{}, *listed[1:]]


def log_prob_array(values: Sequence[Any] | None, count: int) -> np.ndarray:
    """float32 log-probs, checked: `count` finite numbers, none of them a probability above 1 or of 0."""
    if not isinstance(values, list) or len(values) != count:
        raise Malformed(f"no list of {count} log-probs")
    if not all(isinstance(each, float | int) and not isinstance(each, bool) for each in values):
        raise Malformed("a log-prob that is missing or no number")
    array = np.array(values, np.float64)
    if not np.isfinite(array).all() or array.size and (array.min() < LEAST or array.max() > LARGEST):
        bad = array[~((array >= LEAST) & (array <= LARGEST))][0]
        raise Malformed(f"a log-prob of {bad:.6g}")
    return np.minimum(array, 0.0).astype(np.float32)


def _finish_reason(reason: Any, ids: list[int], sampling: Sampling) -> str:
    stops = [each in sampling.stop_ids for each in ids]
    if any(stops[:-1]):
        raise Malformed(f"it went on after stop token {ids[stops.index(True)]}")
    if stops[-1]:
        return "stop"
    if reason == "length" and len(ids) == sampling.max_new_tokens:
        return "length"
    if reason == "length":
        raise Malformed(f"it ended after {len(ids)} of {sampling.max_new_tokens} tokens; its --max-model-len is too "
                        "small for prompt and response, or it was started with limits of its own")
    raise Malformed(f"it stopped at token {ids[-1]}, which ends no rollout here; start it with --generation-config "
                    "vllm")


def _integers(values: Any) -> bool:
    return isinstance(values, list) and all(type(each) is int for each in values)
