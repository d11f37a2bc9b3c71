"""The same trainer at the size of a real vocabulary: V 151,936, width 896, tied head, Zipf ids."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import objectives
from pipeline.config.model import TeacherTopKLsm, Train
from pipeline.train.optimizer import adamw
from pipeline.train.probe import Probe
from pipeline.train.reader import join
from pipeline.train.student import Student
from pipeline.train.trainer import Trainer
from tests.train.tables import mask_table, rollouts_table, tiny_model, tokens_table

VOCAB, WIDTH = 151_936, 896


def build(count: int, longest: int, **settings) -> tuple[Trainer, tuple]:
    """A trainer on rollouts that the same model scored: teacher and student differ by the head's rows only."""
    model = tiny_model(1, VOCAB, hidden=WIDTH, layers=1, spread=0.02)
    rollouts = rollouts_table(count, 0, VOCAB, longest=longest, zipf=True)
    tokens = tokens_table(rollouts, model, model, grid=32, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.mul_(0.5)
    optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    tables = rollouts, tokens, mask_table(tokens, 0)
    return Trainer(Student(model, vocabulary=VOCAB), optimizer, objectives.build(TeacherTopKLsm()),
                   Train(warmup_steps=0, learning_rate=1e-3, **settings), join(*tables, "here"), grid=32), tables


def dense_gradient(model, tables) -> dict[str, torch.Tensor]:
    """The gradient of LSM over full logits, by plain autograd."""
    rows, weights = tables[1].to_pylist(), tables[2]["weight"].to_pylist()
    total = 0.0
    for rollout in tables[0].to_pylist():
        prompt = rollout["prompt_tokens"]
        logits_TV = model(input_ids=torch.tensor([prompt + rollout["response_tokens"]])).logits[0]
        for row, weight in zip(rows, weights):
            if row["rollout_id"] == rollout["rollout_id"]:
                z = logits_TV[len(prompt) + row["position"] - 1, torch.tensor(row["teacher_topk_ids"])]
                log_p, log_q = z.log_softmax(0), torch.tensor(row["teacher_topk_log_probs"]).log_softmax(0)
                total = total + weight * (log_p.exp() * (log_p - log_q)).sum()
    (total / np.count_nonzero(weights)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def made() -> tuple[Trainer, tuple]:
    return build(6, 60, rollouts_per_step=3, micro_batch_tokens=2048)


def test_no_matrix_of_tokens_by_vocabulary_is_ever_built(made):
    trainer, _ = made
    for _ in range(2):  # the second one zeroes, so touches, every page of the gradients
        trainer.accumulate(*trainer.prepare_step(np.arange(1)), Probe(32))
    works, denominator = trainer.prepare_step(np.tile(np.arange(6), 12))
    tokens = max(len(work.batch) for work in works)
    PEAK_RESET.write_text("5")
    before = peak_bytes()
    trainer.accumulate(works, denominator, Probe(32))
    assert tokens > 700 and peak_bytes() - before < 0.7 * tokens * VOCAB * 4


PEAK_RESET = Path("/proc/self/clear_refs")
"""Writing 5 sets the peak of the resident memory back to what is resident (Linux)."""


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def test_gradient_and_steps(made):
    trainer, tables = made
    reference = dense_gradient(copy.deepcopy(trainer.student.model), tables)
    trainer.accumulate(*trainer.prepare_step(np.arange(6)), Probe(32))
    for name, parameter in trainer.student.model.named_parameters():
        assert (parameter.grad - reference[name]).abs().max() <= 1e-5 * reference[name].abs().max(), name
    del reference
    rows = trainer.train_round(0, 0, lambda *_: None)
    assert len(rows) == 2 and rows[0]["staleness"] == 0 and rows[1]["staleness"] == 1
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
