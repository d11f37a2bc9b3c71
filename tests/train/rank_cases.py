"""Rounds that two ranks train on together, in one pair of processes: what tests/train/test_train_ranks.py starts.

    torchrun --standalone --nproc-per-node 2 -m tests.train.rank_cases FOLDER
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline import objectives
from pipeline.config import RunConfig, load_config
from pipeline.config.model import TailBucketTopK, TeacherTopKLsm
from pipeline.context import RoundContext
from pipeline.train.adapter import Base
from pipeline.train.opening import open_student
from pipeline.train.parallel import OneProcess, Ranks
from pipeline.train.reader import join
from pipeline.train.session import Trained
from pipeline.train.trainer import Trainer
from storage.records import CheckpointFiles
from tests.tiny import byte_tokenizer, make_tiny, save_model
from tests.train.tables import SMALL_K, K, made_up_round

VOCAB = 259
CASES = {
    "plain": {},
    "untied": {},
    "one_rollout": {"train.rollouts_per_step": 1},
    "sequence_mean": {"train.reduction": "sequence_mean", "train.micro_batch_tokens": 40},
    "checkpointed": {"train.gradient_checkpointing": True, "train.micro_batch_tokens": 60},
    "packed": {"train.packing": "packed", "train.micro_batch_tokens": 100},
    "bfloat16": {"train.precision": "bfloat16"},
    "clipped": {"train.max_grad_norm": 0.05},
    "lora": {"train.lora.rank": 4, "train.lora.alpha": 8},
    "fuse": {"train.drift_fuse": 1e-4, "train.rollouts_per_step": 11, "train.epochs": 30},
}


def context_of(folder: Path, number: int, **changes) -> RoundContext:
    """A round without a store."""
    config = load_config(folder / "config.toml", [f"{key}={json.dumps(value)}" for key, value in {
        "score.teacher_top_k": K, "score.student_top_k": SMALL_K, "train.age_cap": 100, "train.drift_fuse": 9.0,
        "train.learning_rate": 1e-2, "train.epochs": 7, **changes}.items()])
    assert isinstance(config, RunConfig)
    return RoundContext(None, "x", number, config, {"vocabulary": {"shared": VOCAB}}, None)


def tables(folder: Path):
    from pipeline.models import load_model

    models = load_model(folder / "student"), load_model(folder / "teacher")
    return made_up_round(11, 5, vocab=VOCAB, student=models[0], teacher=models[1], grid=32, longest=60)


def train(folder: Path, data, start: Path, ranks: OneProcess, out: Path, name: str, number: int = 0,
          adapter: bool = False, **changes) -> list[dict]:
    """The rows of a round from the checkpoint `start`; the next one goes to `out`."""
    context = context_of(folder, number, **CASES[name], **changes)
    base = Base(CheckpointFiles("base", "0", []), folder / "student" if adapter else start, start if adapter else None)
    first = ranks.rank == 0
    opened = open_student(context, base if first else None, start if first else None, ranks)
    kind = TailBucketTopK() if name == "untied" else TeacherTopKLsm()
    trainer = Trainer(opened.student, opened.optimizer, objectives.build(kind, context.config.train.reduction),
                      context.config.train, join(*data, "here"), grid=32, run_steps=opened.run_steps, ranks=ranks,
                      packed=opened.packed)
    rows = trainer.train_round(3, number, lambda *_: None)
    closing = trainer.closing()
    if first:
        out.mkdir(parents=True)
    Trained(context, trainer, ranks, None, start if first else None, base, None, {}).write_checkpoint(out)
    return [*rows, closing]


def make(folder: Path) -> None:
    make_tiny(folder)
    save_model(folder / "untied", byte_tokenizer(), seed=1, tied=False)


def main(folder: Path) -> None:
    """Every case by both ranks, and what one process made carried on by both."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    dist.init_process_group("gloo")
    ranks = Ranks(torch.device("cpu"))
    data = tables(folder)
    for name in CASES:
        start = folder / ("untied" if name == "untied" else "student")
        rows = train(folder, data, start, ranks, folder / "two" / name, name)
        if ranks.rank == 0:
            (folder / "two" / f"{name}.json").write_text(json.dumps(rows))
    for name in ("plain", "lora"):
        rows = train(folder, data, folder / "one" / name, ranks, folder / "one-two" / name, name, 1, name == "lora")
        if ranks.rank == 0:
            (folder / "one-two" / f"{name}.json").write_text(json.dumps(rows))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
