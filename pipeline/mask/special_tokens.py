"""Special-token mask: weight 0 for the first occurrence per response of each listed token (Revisiting OPD).

The teacher of another family finds `<`, `think` or `<|im_end|>` impossible where its own template has other tokens
(log-probs of -19 to -59 against the student's 0): one such token outweighs the rest of the response.
"""

import numpy as np
import pyarrow as pa

from pipeline.mask.marks import Marks, zero
from storage.errors import UserError


def resolve(texts: list[str], tokenizer) -> dict[str, int]:
    """Text -> token id: an entry of the vocabulary, or a text that encodes to one token. Raises UserError."""
    vocabulary = tokenizer.get_vocab()
    return {text: _token_id(text, tokenizer, vocabulary) for text in texts}


def mark(tokens: pa.Table, ids: dict[str, int], occurrences: str) -> Marks:
    """Marks of the listed tokens in a table sorted by rollout and position; `occurrences` is first or all."""
    token_ids_N, rollouts_N = tokens["token_id"].to_numpy(), tokens["rollout_id"].to_numpy()
    found = [np.flatnonzero(token_ids_N == token_id) for token_id in ids.values()]
    if occurrences == "first":
        found = [rows[np.unique(rollouts_N[rows], return_index=True)[1]] for rows in found]
    reasons_M = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
    return zero(np.concatenate([np.empty(0, np.int64), *found]), reasons_M, [f"special_token:{text}" for text in ids])


def _token_id(text: str, tokenizer, vocabulary: dict[str, int]) -> int:
    if text in vocabulary:
        return vocabulary[text]
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise UserError(f"mask special_tokens: {text!r} is {len(ids)} tokens of the student's tokenizer, not one: list "
                        "a token of its vocabulary, or leave it out")
    return ids[0]
