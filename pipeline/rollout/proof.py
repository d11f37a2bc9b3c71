"""The proof that an engine has the round's weights: its log-probs of what it wrote against the checkpoint's own.

The checkpoint is loaded a second time, by transformers on the CPU (the engine has the GPU), and scores the first tokens
of a few rollouts. Both must agree within TOLERANCE nats on average. In float32 that tells apart any two checkpoints
that differ by more than rounding. In bfloat16 it tells another model and a head that stayed behind, and not one small
step of training: there `moved` (what a reload did to the engine's own log-probs) is the finer sign.

Shapes: T tokens, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.config.model import Model
from pipeline.vllm.start import EngineFailed

TOLERANCE = {"float32": 2e-3, "bfloat16": 0.1}
"""Mean nats. Engines differ from transformers by 1e-6 to 1e-4 in float32 (sums in another order), by .01 to .05 in
bfloat16; under an old round's weights by .05 and more after a hundred steps."""


def prove(model: Model, folder: Path, prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray],
          log_probs_T: np.ndarray, vocabulary: int) -> dict:
    """{"tokens", "log_prob_difference": mean nats, "largest"}. Raises EngineFailed for other weights."""
    difference_T = np.abs(log_probs_T - own_log_probs(model, folder, prompts, responses, vocabulary))
    if not difference_T.mean() <= TOLERANCE[model.dtype]:
        raise EngineFailed(f"the rollout engine does not have the weights in {folder}: on {len(difference_T)} tokens "
                           f"its log-probs differ from theirs by {difference_T.mean():.3g} nats on average, rounding "
                           f"in {model.dtype} by at most {TOLERANCE[model.dtype]}; nothing was written, run the same "
                           "command again with a new engine")
    return {"tokens": len(difference_T), "log_prob_difference": float(difference_T.mean(dtype=np.float64)),
            "largest": float(difference_T.max())}


def own_log_probs(model: Model, folder: Path, prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray],
                  vocabulary: int) -> np.ndarray:
    """float32 [T]: raw log-probs of the response tokens, one after the other, by transformers on the CPU."""
    import torch

    loaded = load_on_cpu(model, folder)
    found = []
    with torch.inference_mode():
        for prompt, response in zip(prompts, responses, strict=True):
            ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
            logits_TV = loaded(input_ids=ids[None], use_cache=False, logits_to_keep=len(response) + 1).logits[0, :-1]
            log_probs_TV = logits_TV[:, :vocabulary].float().log_softmax(-1)
            found.append(log_probs_TV.gather(1, ids[len(prompt):, None])[:, 0].numpy())
    return np.concatenate(found)


def load_on_cpu(model: Model, folder: Path):
    """The checkpoint by transformers, beside an engine that has the GPU."""
    from pipeline.models import load_model

    attention = "sdpa" if model.attention == "flash_attention_2" else model.attention  # it has no kernel for a CPU
    return load_model(folder, dtype=model.dtype, attention=attention, device="cpu",
                      trust_remote_code=model.trust_remote_code)
