"""Scoring and training at the shapes of Qwen2.5 with random weights: tokens per second, beside a transformers loop over
full logits and beside a trainer with a dense head.

Scoring: K = 32, k = 16, bfloat16, student and teacher of one shape; prompts and responses of 256 tokens at most, four
samples per prompt. The loop does what a plain teacher does, at its best: batches padded by length, full logits of every
row, log_softmax in float32, topk, gathers. Model FLOP utilisation counts what scoring needs: both trunks over prompts
and responses once per rollout, attention, and the heads over response rows alone.

Training: bfloat16 products over float32 weights, gradient checkpointing, fused AdamW, the packing of the trainer. The
7B shape runs with 4 of its 28 layers: 16 bytes of weights, gradients and moments per parameter of the rest do not fit
beside activations.
"""

import contextlib

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.gpu_figures import Figure
from benchmarks.gpu_tools import Bench, as_peers_run, random_rollouts, unmasked
from pipeline.config.model import TeacherTopKLsm
from pipeline.config.score import Score
from pipeline.config.train import Train
from pipeline.models import output_head
from pipeline.objectives import StudentLogits, build
from pipeline.score.scorer import score_rollouts
from pipeline.train.attention import use_packing
from pipeline.train.compiling import compile_layers
from pipeline.train.optimizer import adamw
from pipeline.train.reader import join
from pipeline.train.student import Student
from pipeline.train.trainer import Trainer

SETTINGS = Score(teacher_top_k=32, student_top_k=16, batch_tokens=16384, head_rows=2048)
TRAINED = {"0.5B": {}, "1.5B": {}, "7B": {"num_hidden_layers": 4}}
TEACHER_PASSES = 2
"""Timed passes over the rollouts, after one that warms up."""


def scoring_cases(bench: Bench) -> list:
    return [(f"scoring {shape}", lambda shape=shape: scoring(bench, shape)) for shape in shapes(bench)]


def training_cases(bench: Bench) -> list:
    return [*((f"training {shape}", lambda shape=shape: training(bench, shape)) for shape in shapes(bench)),
            ("training 0.5B, layers compiled", lambda: compiled_training(bench))]


def shapes(bench: Bench) -> list[str]:
    return ["0.5B"] if bench.tiny else ["0.5B", "1.5B", "7B"]


def rollouts(bench: Bench, vocabulary: int, prompts: int):
    return random_rollouts(2, 2, 4, 8, vocabulary) if bench.tiny else random_rollouts(prompts, 4, 256, 256, vocabulary)


def scoring(bench: Bench, shape: str) -> list[Figure]:
    dtype = torch.bfloat16 if bench.gpu else torch.float32
    student, teacher = (bench.model(shape, dtype, seed) for seed in (1, 2))
    vocabulary = len(output_head(student).weight_VD)
    table = rollouts(bench, vocabulary, {"0.5B": 64, "1.5B": 48, "7B": 24}[shape])
    settings = SETTINGS if not bench.tiny else Score(teacher_top_k=8, student_top_k=4)
    tokens = sum(map(len, table["response_tokens"].to_pylist()))
    ours = bench.ms(lambda: score_rollouts(table, student, teacher, vocabulary, settings), TEACHER_PASSES) / 1000
    with as_peers_run():
        plain = bench.ms(lambda: plain_loop(table, (student, teacher), settings), 1) / 1000
    done = 2 * operations(table, student, vocabulary) / ours
    gb = bench.extra_gb(lambda: score_rollouts(table, student, teacher, vocabulary, settings))
    peak = bench.peak()
    found = [Figure(f"scoring {shape}: response tokens, teacher and student", tokens / ours, "per s"),
             Figure(f"scoring {shape}: transformers loop over full logits", tokens / plain, "per s"),
             Figure(f"scoring {shape}: loop / ours", plain / ours, "times", 2.0 if bench.gpu else None),
             Figure(f"scoring {shape}: operations", done / 1e12, "TFLOP/s"),
             Figure(f"scoring {shape}: model FLOP utilisation", done / peak * 100 if peak else None, "%",
                    note="" if peak else "(no data sheet for this device)"),
             Figure(f"scoring {shape}: extra memory", gb, "GB")]
    bench.free()
    return found


def operations(table, model, vocabulary: int) -> float:
    """Of one model: 2 per weight of the trunk and token, 4 per width and pair that attends, 2 V D per response row."""
    config, head = model.config, output_head(model)
    embeddings = model.get_input_embeddings().weight.numel() + (0 if config.tie_word_embeddings else
                                                                head.weight_VD.numel())
    trunk = sum(parameter.numel() for parameter in model.parameters()) - embeddings
    said = np.array([len(ids) for ids in table["response_tokens"].to_pylist()])
    length = said + np.array([len(ids) for ids in table["prompt_tokens"].to_pylist()])
    attention = 2 * (length.astype(float)**2).sum() * config.hidden_size * config.num_hidden_layers
    return 2 * trunk * length.sum() + attention + 2 * vocabulary * config.hidden_size * said.sum()


@torch.inference_mode()
def plain_loop(table, models, settings: Score) -> None:
    """Results stay on the device, one at a time."""
    rows = sorted(zip(table["prompt_tokens"].to_pylist(), table["response_tokens"].to_pylist()),
                  key=lambda row: len(row[0]) + len(row[1]))
    for start in range(0, len(rows), 8):
        batch = rows[start:start + 8]
        longest = max(len(prompt) + len(said) for prompt, said in batch)
        ids = torch.tensor([prompt + said + [0] * (longest - len(prompt) - len(said)) for prompt, said in batch],
                           device=models[0].device)
        log_p, log_q = (model(ids).logits.float().log_softmax(-1) for model in models)
        next_ids = ids.roll(-1, 1)[..., None]
        top = log_q.topk(settings.teacher_top_k), log_p.topk(settings.student_top_k)
        for values in (log_q.gather(2, top[1].indices), log_p.gather(2, next_ids), log_q.gather(2, next_ids),
                       top[0].values, top[1].values):
            values.cpu()


class DenseTrainer(Trainer):
    """The same trainer with the head of a peer: logits of the whole vocabulary at every trained position."""

    def _on_support(self, index, batch, hidden_ND):
        with torch.autocast(hidden_ND.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            logits_NV = F.linear(hidden_ND, self.student.head.weight_VD)
        return self.objective.loss(batch, StudentLogits(logits_NV.gather(1, self.objective.support(batch)).float()))


class Steps:
    """Whole steps of training at a shape, with whichever trainer."""

    def __init__(self, bench: Bench, shape: str, **changes):
        self.bench = bench
        self.settings = Train(precision="bfloat16" if bench.gpu else "float32", gradient_checkpointing=True,
                              drift_fuse=None)
        self.model = model = bench.model(shape, torch.float32, 1, **changes)
        self.vocabulary = len(output_head(model).weight_VD)
        self.table = rollouts(bench, self.vocabulary, 16)
        top = {"teacher_top_k": 8, "student_top_k": 4} if bench.tiny else {"teacher_top_k": 32, "student_top_k": 16}
        tokens = score_rollouts(self.table, model, model, self.vocabulary, Score(**top, batch_tokens=16384))
        self.data, self.everything = join(self.table, tokens, unmasked(tokens), "here"), np.arange(len(self.table))
        self.read = sum(map(len, self.table["prompt_tokens"].to_pylist())) + len(tokens)
        self.packed = use_packing(model, "auto", self.settings.precision, "sdpa")
        self.student = Student(model, precision=self.settings.precision, gradient_checkpointing=True)
        self.optimizer = adamw(model, learning_rate=1e-6, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)

    def seconds(self, kind: type[Trainer], mode) -> float:
        """Of one step, after one that warms up."""
        trainer = kind(self.student, self.optimizer, build(TeacherTopKLsm()), self.settings, self.data, grid=32,
                       packed=self.packed)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.bench.gpu else before)
        try:
            with mode():
                return self.bench.ms(lambda: trainer.step(self.everything), 1 if self.bench.tiny else 2) / 1000
        finally:
            torch.set_float32_matmul_precision(before)
            self.model.zero_grad(set_to_none=True)
            self.bench.free()


def compiled_training(bench: Bench) -> list[Figure]:
    """What train.compile brings, on top of the support head."""
    steps = Steps(bench, "0.5B")
    plain = steps.seconds(Trainer, as_peers_run)
    compile_layers(steps.model)
    compiled = steps.seconds(Trainer, as_peers_run)
    return [Figure("training 0.5B: support head, layers compiled", steps.read / compiled, "tokens/s"),
            Figure("training 0.5B: plain / compiled", plain / compiled, "times")]


def training(bench: Bench, shape: str) -> list[Figure]:
    changes = {} if bench.tiny else TRAINED[shape]
    name = f"training {shape}" + (f" with {changes['num_hidden_layers']} layers" if changes else "")
    steps = Steps(bench, shape, **changes)
    seconds = {side: steps.seconds(kind, mode) for side, kind, mode in (
        ("dense head", DenseTrainer, as_peers_run), ("support head", Trainer, as_peers_run),
        ("support head, deterministic", Trainer, contextlib.nullcontext))}
    read, packed = steps.read, steps.packed
    peak, done = bench.peak(), 3 * operations(steps.table, steps.model, steps.vocabulary) / seconds["dense head"]
    return [*(Figure(f"{name}: {side}{', packed' if packed else ''}", read / value, "tokens/s")
              for side, value in seconds.items()),
            Figure(f"{name}: support head / dense head", seconds["dense head"] / seconds["support head"], "times"),
            Figure(f"{name}: model FLOP utilisation of the dense head's step", done / peak * 100 if peak else None, "%",
                   note="" if peak else "(no data sheet for this device)")]
