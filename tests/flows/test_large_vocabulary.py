"""The same commands at the size of a real model's head: V 151,936, d 896, tied, Zipf ids, from a config."""

import json
import random

import torch

from flows.cli import main
from tests.flows.dense_audit import audit
from tests.tiny import FIRST_TOKEN, TEMPLATE, config_text, save_model

V = 151_936


def word_tokenizer():
    """One id per word `w0` to `w151930`, after the special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "user", "assistant"]
    words = {word: at for at, word in enumerate([*special, *(f"w{n}" for n in range(V - len(special)))])}
    core = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    core.add_special_tokens(special[:3])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   chat_template=TEMPLATE)


def zipf_problems(file, count: int = 8, seed: int = 0) -> None:
    """Questions of 24 words drawn by Zipf's law."""
    draw = random.Random(seed)
    ranks = range(1, V - 5)
    weights = [1 / rank for rank in ranks]
    rows = [{"question": " ".join(f"w{n}" for n in draw.choices(ranks, weights, k=24)), "answer": "#### 1"}
            for _ in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_round_runs_from_a_config_at_the_size_of_a_real_vocabulary(tmp_path):
    tokenizer = word_tokenizer()
    for name, seed in (("student", 1), ("teacher", 2)):
        save_model(tmp_path / name, tokenizer, seed=seed, hidden=896, layers=1, sharpness=0.25)
    zipf_problems(tmp_path / "problems.jsonl")
    zipf_problems(tmp_path / "held_out.jsonl", count=2, seed=1)
    (tmp_path / "first_token.sql").write_text(FIRST_TOKEN)
    config = tmp_path / "config.toml"
    config.write_text(config_text(tmp_path, rounds=1, threads=2, **{
        "prompts.per_round": 4, "rollout.samples": 2, "rollout.max_new_tokens": 8, "score.teacher_top_k": 64,
        "score.student_top_k": 16, "train.rollouts_per_step": 4}))
    assert main(["run", str(config)]) == 0
    torch.set_num_threads(1)
    found = audit(tmp_path / "store", "tiny", 0)
    assert found.scalars < 1e-4 and found.lists <= 0.5 / 32 + 1e-4 and found.wrong_ids == 0
    steps = [row for file in (tmp_path / "store/run=tiny/round=0/train/steps").iterdir() for row in rows(file)]
    assert len(steps) == 2 and all(0 < row["loss"] < 20 for row in steps)


def rows(file) -> list[dict]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(file, partitioning=None).to_pylist()
