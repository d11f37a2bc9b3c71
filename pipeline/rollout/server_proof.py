"""The proof that a server holds the round's weights: its log-probs of a few prompts against the checkpoint's own.

A server cannot be asked for the fingerprint of its weights. So the first tokens of up to PROMPTS prompts are sent for
their `prompt_logprobs`, which no sampling setting and no prefix cache touches, and the checkpoint, loaded here
on the CPU, must give the same ones: on average within TOLERANCE nats of them. In float32 that tells apart any two
checkpoints that differ by more than rounding. In bfloat16 it tells another model, and not one small step of training:
the scorer's gate and `train_rollout_logprob_abs_diff` then say more, over all tokens.

Shapes: T tokens of a prompt, V rows of the head.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.config.model import Model
from pipeline.rollout.proof import TOLERANCE, load_on_cpu
from pipeline.rollout.server_answers import Malformed, read_prompt_log_probs
from pipeline.vllm.client import VllmClient, prompt_request
from storage.errors import UserError

PROMPTS, TOKENS = 4, 256
PADDED_MASS = 1e-3
"""Mean probability of the head's rows that are no shared tokens: it is missing in every log-prob of the server."""


def probe_prompts(client: VllmClient, prompts: Sequence[list[int]]) -> list[list[int]]:
    """What the server is asked about: the first tokens of some prompts. Raises UserError without any of two tokens."""
    asked = [list(prompt) for prompt in dict.fromkeys(tuple(prompt[:TOKENS]) for prompt in prompts)][:PROMPTS]
    asked = [prompt for prompt in asked if len(prompt) > 1]
    if not asked:
        raise UserError(f"{client.name}: no prompt of this shard has two tokens, so nothing proves which weights it "
                        "holds: put more into prompts.template")
    return asked


def said(client: VllmClient, asked: list[list[int]]) -> np.ndarray:
    """float32 [T]: the server's log-probs of every token but the first of each prompt."""
    def read(index: int, answer: dict) -> np.ndarray:
        try:
            return read_prompt_log_probs(answer, asked[index], 1)
        except Malformed as error:
            raise client.malformed(str(error)) from error

    return np.concatenate(client.complete([prompt_request(client.settings.model, prompt, 0) for prompt in asked], read))


def refuse_moved(client: VllmClient, dtype: str, before: np.ndarray, after: np.ndarray) -> None:
    """Raise UserError if a server's log-probs of the same tokens moved: it was restarted, or given other weights."""
    moved = np.abs(after - before).mean()
    if not moved <= TOLERANCE[dtype] / 5:
        raise UserError(f"{client.name} changed its weights while it wrote: its log-probs of the same {len(before)} "
                        f"tokens moved by {moved:.3g} nats on average; nothing of this shard was kept: give it the "
                        "round's weights and run the same command again")


def prove(client: VllmClient, model: Model, folder: Path, asked: list[list[int]], theirs: np.ndarray,
          vocabulary: int) -> dict:
    """{"tokens": .., "log_prob_difference": mean nats, "largest": ..} of what the server `said` of `asked`. Raises
    UserError for other weights."""
    own, padded_mass = _own_log_probs(model, folder, asked, vocabulary)
    difference = np.abs(theirs - own)
    if not difference.mean() <= TOLERANCE[model.dtype]:
        raise UserError(f"{client.name} does not hold the weights in {folder}: on {len(difference)} tokens its "
                        f"log-probs differ by {difference.mean():.3g} nats on average, rounding in {model.dtype} by at "
                        f"most {TOLERANCE[model.dtype]}; load them there, or set rollout.engine.reload = 'rpc', and "
                        "run the same command again")
    if padded_mass > PADDED_MASS:
        raise UserError(f"{client.name} normalises over its whole head, whose rows beyond the {vocabulary} shared "
                        f"tokens hold {padded_mass:.2g} of the probability, so its log-probs are of something else; "
                        "use another rollout.engine")
    return {"tokens": len(difference), "log_prob_difference": float(difference.mean(dtype=np.float64)),
            "largest": float(difference.max()), "padded_mass": padded_mass}


def _own_log_probs(model: Model, folder: Path, prompts: list[list[int]], vocabulary: int) -> tuple[np.ndarray, float]:
    """Under the weights in `folder`: the log-prob of every token but the first of each prompt, over the whole head as
    the server has it, and the mean mass of the rows beyond the shared tokens."""
    import torch

    loaded = load_on_cpu(model, folder)
    found, padded = [], []
    with torch.inference_mode():
        for prompt in prompts:
            ids_1T = torch.tensor([prompt])
            log_probs_TV = loaded(input_ids=ids_1T).logits[0, :-1].float().log_softmax(-1)
            found.append(log_probs_TV.gather(1, ids_1T[0, 1:, None])[:, 0].numpy())
            padded.append(log_probs_TV[:, vocabulary:].exp().sum(1).numpy())
    return np.concatenate(found), float(np.concatenate(padded).mean(dtype=np.float64))
