"""Tokens per second of whole training steps: dense head against support head over the same trunk, ranks, checkpointing.

    python -m benchmarks.trainer [--positions 512] [--layers 6] [--repeats 3]

Qwen2.5-0.5B's width and vocabulary (d 896, V 151,936, tied), 6 layers, float32, K 32, prompts and responses of 128
tokens, teacher_topk_lsm. A step is the trainer's own: forward, probe, backward, clipping, AdamW. The dense side differs
in one function alone: full logits, then the K of the support. One process has two threads, each of two ranks one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.report import Target, finish
from pipeline import objectives
from pipeline.config.model import TeacherTopKLsm, Train
from pipeline.objectives.batch import StudentLogits
from pipeline.ragged import starts_of
from pipeline.train.compiling import compile_layers
from pipeline.train.optimizer import adamw
from pipeline.train.parallel import OneProcess
from pipeline.train.reader import BATCH_COLUMNS, RoundTokens
from pipeline.train.student import Student
from pipeline.train.trainer import Trainer

WIDTH, K, PROMPT, RESPONSE = 896, 32, 128, 128


class DenseTrainer(Trainer):
    """The same step with logits over the whole vocabulary."""

    def _on_support(self, index, batch, hidden_ND):
        logits_NV = F.linear(hidden_ND, self.student.head.weight_VD)
        return self.objective.loss(batch, StudentLogits(logits_NV.gather(1, index.ids_NS)))


def made_up_round(rollouts: int, vocabulary: int) -> RoundTokens:
    """Rollouts of equal length; ids Zipf-1 distributed, as in text."""
    random = np.random.default_rng(0)
    ones, rows = np.ones(rollouts, dtype=np.int64), rollouts * RESPONSE
    lists = torch.from_numpy(np.sort(random.exponential(3.0, (rows, K)), axis=1) * -1.0 - 0.1).float()
    columns = {name: torch.full((rows,), -1.0) for name in BATCH_COLUMNS.values()}
    for name in ("teacher_topk_ids", "student_topk_ids"):
        columns[name] = torch.from_numpy(zipf(random, (rows, K), vocabulary))
    columns |= dict.fromkeys(("teacher_topk_log_probs", "student_topk_log_probs", "teacher_log_probs_at_student_topk"),
                             lists)
    columns["token_id"] = columns["teacher_topk_ids"][:, 0]
    length = PROMPT + RESPONSE
    tokens = torch.from_numpy(zipf(random, rollouts * length, vocabulary))
    return RoundTokens(np.arange(rollouts), ones * PROMPT, tokens, starts_of(ones * length), ones * length,
                       starts_of(ones * RESPONSE), ones * RESPONSE, np.tile(np.arange(RESPONSE), rollouts),
                       torch.ones(rows), columns)


def zipf(random: np.random.Generator, shape, vocabulary: int) -> np.ndarray:
    return (np.exp(random.random(shape) * np.log(vocabulary)) - 1).astype(np.int32)


def make_model(asked) -> torch.nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(
        vocab_size=asked.vocabulary, hidden_size=WIDTH, intermediate_size=4864, num_hidden_layers=asked.layers,
        num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True)).eval()


def trainer_of(model, asked, kind: type[Trainer], ranks: OneProcess, sharded=None, checkpointing: bool = False):
    settings = Train(drift_fuse=None, age_cap=1000, micro_batch_tokens=1024, warmup_steps=0)
    student = Student(model, gradient_checkpointing=checkpointing, sharded=sharded)
    optimizer = adamw(student.weights, learning_rate=1e-6, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    return kind(student, optimizer, objectives.build(TeacherTopKLsm(k=K)), settings,
                made_up_round(asked.positions // RESPONSE, asked.vocabulary), grid=32, ranks=ranks)


def measure(trainer: Trainer, repeats: int) -> dict:
    """Tokens per second, prompts included, of steps after the first, which makes AdamW's state."""
    rollouts = np.arange(len(trainer.data.rollout_id_R))
    loss, seconds = trainer.step(rollouts)["loss"], []
    for _ in range(repeats):
        start = time.perf_counter()
        trainer.step(rollouts)
        seconds.append(time.perf_counter() - start)
    tokens = len(rollouts) * (PROMPT + RESPONSE)
    return {"tokens_per_s": tokens / statistics.median(seconds), "step_s": [round(each, 3) for each in seconds],
            "first_loss": loss}


def one_process(asked) -> dict:
    torch.set_num_threads(2)
    found = {}
    for name, kind, checkpointing, compiled in (
            ("dense head", DenseTrainer, False, False), ("support head", Trainer, False, False),
            ("support head, checkpointing", Trainer, True, False), ("support head, compiled", Trainer, False, True)):
        model = make_model(asked)
        if compiled:
            compile_layers(model)
        found[name] = measure(trainer_of(model, asked, kind, OneProcess(), checkpointing=checkpointing), asked.repeats)
        show(name, found[name])
    return found


def two_ranks(asked) -> dict:
    """Both sides again, by two processes that share each step."""
    with tempfile.TemporaryDirectory(prefix="opd-bench-") as folder:
        out = Path(folder) / "found.json"
        same = [f"--{name}={getattr(asked, name)}" for name in ("positions", "layers", "vocabulary", "repeats")]
        subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
                        "benchmarks.trainer", "--rank", str(out), *same], check=True,
                       env={**os.environ, "OMP_NUM_THREADS": "1"})
        found = json.loads(out.read_text())
    for name, each in found.items():
        show(name, each)
    return found


def rank(asked) -> None:
    import torch.distributed as dist

    from pipeline.train.parallel import Ranks
    from pipeline.train.sharded import ShardedModel

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks, found = Ranks(torch.device("cpu")), {}
    for name, kind in (("dense head, 2 ranks", DenseTrainer), ("support head, 2 ranks", Trainer)):
        with torch.device("meta"):
            model = make_model(asked)
        sharded = ShardedModel(model, ranks, "float32")
        sharded.fill(make_model(asked) if ranks.rank == 0 else None)
        found[name] = measure(trainer_of(model, asked, kind, ranks, sharded), asked.repeats)
    if ranks.rank == 0:
        asked.rank.write_text(json.dumps(found))
    dist.destroy_process_group()


def show(name: str, found: dict) -> None:
    print(f"{name:<30} {found['tokens_per_s']:>8.1f} tokens/s   loss of the first step {found['first_loss']:.7f}",
          flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=512, help="response tokens of a step")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rank", type=Path, help="be one of two ranks, for torchrun")
    asked = parser.parse_args()
    if asked.rank:
        rank(asked)
        return 0
    found = {**one_process(asked), **two_ranks(asked)}
    speed = {name: each["tokens_per_s"] for name, each in found.items()}
    losses = [each["first_loss"] for each in found.values()]
    shape = {"vocabulary": asked.vocabulary, "width": WIDTH, "layers": asked.layers, "k": K, "prompt_tokens": PROMPT,
             "response_tokens": RESPONSE, "responses_per_step": asked.positions // RESPONSE, "dtype": "float32"}
    ratios = {"support head / dense head": speed["support head"] / speed["dense head"],
              "the same, 2 ranks": speed["support head, 2 ranks"] / speed["dense head, 2 ranks"],
              "compiled / plain": speed["support head, compiled"] / speed["support head"],
              "2 ranks of one thread / 1 process of two": speed["support head, 2 ranks"] / speed["support head"]}
    for name, ratio in ratios.items():
        print(f"{name:<42} {ratio:.2f}")
    return finish("trainer", {"shape": shape, "found": found, "ratios": ratios}, [
        Target("a whole step is faster with the support head than with the dense head", min(list(ratios.values())[:2]),
               1.0),
        Target("largest difference of the first step's loss", max(losses) - min(losses), 1e-5, at_most=True)])


if __name__ == "__main__":
    sys.exit(main())
