"""The hash that ties numbers to the tokens they belong to."""

import hashlib

import numpy as np


def token_hash(prompt_tokens: np.ndarray, response_tokens: np.ndarray) -> str:
    """sha256 over the number of prompt tokens (int64), then all token ids (int32), little-endian."""
    digest = hashlib.sha256(len(prompt_tokens).to_bytes(8, "little"))
    digest.update(np.asarray(prompt_tokens, dtype="<i4").tobytes())
    digest.update(np.asarray(response_tokens, dtype="<i4").tobytes())
    return digest.hexdigest()
