"""Tiny models and configs for tests: real tokenizers, real Qwen2 architectures, random weights."""

import json
from pathlib import Path

TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
FIRST_TOKEN = "SELECT rollout_id, position, 0.0 AS weight, 'first token' AS reason FROM tokens WHERE position = 0"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_tokenizer(merges: list[str] = ()):
    """A byte-level BPE tokenizer with a chat template: 256 bytes, `merges` trained on, three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(merges, trainers.BpeTrainer(vocab_size=256 + len(SPECIAL) + 8 * bool(merges),
                                                         special_tokens=SPECIAL, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   chat_template=TEMPLATE)


def save_model(folder: Path, tokenizer, *, seed: int, vocab: int | None = None, hidden: int = 32, layers: int = 2,
               tied: bool = True, sharpness: float = 1.0) -> Path:
    """Write a random Qwen2 with `tokenizer` to `folder`; `sharpness` scales the weights, so the distributions."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(vocab_size=vocab or len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden,
                         num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
                         max_position_embeddings=4096, tie_word_embeddings=tied, initializer_range=0.08 * sharpness,
                         eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id,
                                               pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_problems(file: Path, count: int = 64, first: int = 0) -> Path:
    """A JSON-lines file of small sums."""
    numbers = range(first, first + count)
    rows = [{"question": f"What is {n} + {2 * n}?", "answer": f"The sum.\n#### {3 * n}"} for n in numbers]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def config_text(folder: Path, **changes) -> str:
    """A config over the tiny pair in `folder`: 2 rounds, 8 prompts in 4 shards, 2 samples, 4 held-out problems."""
    from pipeline.config.load import apply_settings
    from pipeline.config.template import to_toml

    document = {
        "run": "tiny", "store": str(folder / "store"), "rounds": 2, "seed": 3, "threads": 1,
        "student": {"path": str(folder / "student")}, "teacher": {"path": str(folder / "teacher")},
        "prompts": {"source": {"type": "file", "path": str(folder / "problems.jsonl")}, "per_round": 8, "per_shard": 2},
        "rollout": {"samples": 2, "max_new_tokens": 24}, "score": {"teacher_top_k": 16, "student_top_k": 8},
        "mask": [{"type": "special_tokens", "tokens": ["<|im_end|>"]},
                 {"type": "sql", "file": str(folder / "first_token.sql")}],
        "train": {"learning_rate": 1e-3, "warmup_steps": 2, "rollouts_per_step": 4},
        "evaluation": {"per_shard": 3, "benchmark": [
            {"name": "sums", "source": {"type": "file", "path": str(folder / "held_out.jsonl")}, "samples": 2}]},
    }
    return to_toml(apply_settings(document, [f"{key}={value}" for key, value in changes.items()]))


def make_tiny(folder: Path, **changes) -> Path:
    """Write the tiny pair, problems, a mask and `config.toml` into `folder`; returns the config's path."""
    tokenizer = byte_tokenizer()
    save_model(folder / "student", tokenizer, seed=1)
    save_model(folder / "teacher", tokenizer, seed=2, sharpness=1.5)
    write_problems(folder / "problems.jsonl")
    write_problems(folder / "held_out.jsonl", count=4, first=1000)
    (folder / "first_token.sql").write_text(FIRST_TOKEN)
    (folder / "config.toml").write_text(config_text(folder, **changes))
    return folder / "config.toml"
