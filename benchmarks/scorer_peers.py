"""What others do for the same columns, in plain transformers: full logits, and a chunked head on response rows.

Both read one rollout at a time, prompt and response, as a loop over a data set does.
"""

import numpy as np
import torch

CHUNK = 512
"""Response rows of a product with the head."""


def full_logits(rollouts: list[tuple[list[int], list[int]]], model, k: int) -> list[np.ndarray]:
    """Logits of every row, prompts too, log_softmax in float32, top-k, the sampled token: its log-probs, by rollout."""
    found = []
    for prompt, response in rollouts:
        with torch.inference_mode():
            log_probs_TV = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0].float()
            log_probs_TV = log_probs_TV.log_softmax(-1)[len(prompt) - 1:-1]
            values, ids = log_probs_TV.topk(k)
            found.append(log_probs_TV.gather(1, torch.tensor(response)[:, None])[:, 0].numpy())
            values.numpy(), ids.numpy()
    return found


def chunked_head(rollouts: list[tuple[list[int], list[int]]], model, k: int) -> list[np.ndarray]:
    """The head on response rows alone, in chunks: logsumexp, top-k, the sampled token."""
    found, weight_DV = [], model.get_output_embeddings().weight.T
    for prompt, response in rollouts:
        with torch.inference_mode():
            ids_1T = torch.tensor([prompt + response])
            hidden_TD = model.model(input_ids=ids_1T, use_cache=False).last_hidden_state[0, len(prompt) - 1:-1]
            parts = []
            for start in range(0, len(response), CHUNK):
                logits_NV = (hidden_TD[start:start + CHUNK] @ weight_DV).float()
                sum_N1 = logits_NV.logsumexp(-1, keepdim=True)
                values, ids = logits_NV.topk(k)
                (values - sum_N1).numpy(), ids.numpy()
                token_N1 = torch.tensor(response[start:start + CHUNK])[:, None]
                parts.append((logits_NV.gather(1, token_N1) - sum_N1)[:, 0].numpy())
        found.append(np.concatenate(parts))
    return found
