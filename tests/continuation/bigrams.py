"""A pair whose every word is known: Qwen2 models in which the last token alone decides the next one.

The student writes digits 7, 8 and 9 with spaces between them, and ends after any of them. The teacher knows that the
answer is 7: it writes 7 and ends with a token that only it has; from an 8 it goes on to a 7, and from a 9 it is lost
and writes nines for ever.
"""

import json
import math
from pathlib import Path

from pipeline.config.template import to_toml
from tests.tiny import byte_tokenizer, save_model

END = "<|end|>"
"""The teacher's EOS, behind the ids that both share."""
STUDENT = {"\n": "789", "7": [" ", " ", "<|im_end|>"], "8": [" ", " ", "<|im_end|>"], "9": [" ", " ", "<|im_end|>"],
           " ": "789"}
TEACHER = {"\n": "7", "7": [END], "8": " ", "9": "9", " ": "7"}


def save_bigrams(folder: Path, tokenizer, follows: dict) -> Path:
    """A model that writes one of `follows[token]` after `token`, as likely as it is often there."""
    import torch
    from transformers import Qwen2ForCausalLM

    save_model(folder, tokenizer, seed=1, hidden=8, layers=1, tied=False)
    model = Qwen2ForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith("norm.weight"):
                weight.zero_()  # without attention and MLP a state is the embedding of its own token
        model.lm_head.weight.fill_(-10.0)
        for state, (token, choices) in enumerate(follows.items()):
            model.model.embed_tokens.weight[_id(tokenizer, token), state] = 1.0
            for choice in choices:
                share = list(choices).count(choice) / len(choices)
                model.lm_head.weight[_id(tokenizer, choice), state] = math.log(share) / math.sqrt(8)
    model.save_pretrained(folder)
    return folder


def _id(tokenizer, token: str) -> int:
    return tokenizer.encode(token, add_special_tokens=False)[0]


def make_bigrams(folder: Path, unanswered: int = 2) -> Path:
    """Write the pair, eight problems whose answer is 7 but for the last `unanswered`, which have none, and a config."""
    theirs = byte_tokenizer()
    theirs.add_special_tokens({"eos_token": END})
    save_bigrams(folder / "student", byte_tokenizer(), STUDENT)
    save_bigrams(folder / "teacher", theirs, TEACHER)
    rows = [{"question": f"Which digit, {n}?", "answer": "" if n >= 8 - unanswered else "7"} for n in range(8)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.toml").write_text(to_toml({
        "run": "bigrams", "store": str(folder / "store"), "seed": 3, "threads": 1,
        "student": {"path": str(folder / "student")}, "teacher": {"path": str(folder / "teacher")},
        "prompts": {"source": {"type": "file", "path": str(folder / "problems.jsonl")}, "per_round": 8, "per_shard": 2},
        "rollout": {"samples": 3, "max_new_tokens": 8}, "score": {"teacher_top_k": 4, "student_top_k": 4},
        "continuation": {"depths": [0, 1, 2, 5], "prompts": 5, "rollouts": 2, "samples": 2}}))
    return folder / "config.toml"
