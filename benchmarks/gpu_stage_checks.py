"""Correctness on the device of what the stages compute: scoring, attention over packed rollouts, decoding and training,
against plain passes, the CPU, float32 and the whole model. Without a GPU everything is in float32.
"""

import copy
import tempfile

import numpy as np
import torch
import torch.distributed
from transformers import Qwen2ForCausalLM

from benchmarks.gpu_figures import Figure
from benchmarks.gpu_tools import Bench, random_rollouts, unmasked
from pipeline.config.model import TailBucketTopK, TeacherTopKLsm
from pipeline.config.score import Score
from pipeline.config.train import Train
from pipeline.objectives import build
from pipeline.rollout.engine import Sampling
from pipeline.rollout.transformers_engine import TransformersEngine
from pipeline.score.packed import why_padded
from pipeline.score.scorer import score_rollouts
from pipeline.train.attention import use_packing
from pipeline.train.optimizer import adamw
from pipeline.train.parallel import OneProcess, Ranks
from pipeline.train.reader import join
from pipeline.train.sharded import ShardedModel
from pipeline.train.student import Student
from pipeline.train.trainer import Trainer

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


def stage_cases(bench: Bench) -> list:
    return [("scorer against full logits", lambda: scorer(bench)),
            ("attention over packed rollouts in bfloat16", lambda: packed(bench)),
            ("decoding on this device and on the CPU", lambda: decoding(bench)),
            ("trainer on this device and on the CPU", lambda: trainer(bench)),
            ("trainer in bfloat16, packed and padded", lambda: half_trainer(bench)),
            ("trainer sharded by FSDP2", lambda: sharded_trainer(bench))]


def scorer(bench: Bench) -> list[Figure]:
    """Packed, and padded because of a rotation that depends on length, against full logits of one rollout at a time."""
    figures = []
    table = random_rollouts(3, 2, 6, 8, 300) if bench.tiny else random_rollouts(6, 4, 40, 60, 3000)
    size = {} if bench.tiny else {"hidden_size": 128, "vocab_size": 3000, "num_hidden_layers": 4}
    vocabulary = size.get("vocab_size", 300)
    for way, rope in (("packed", {"rope_type": "default", "rope_theta": 1e4}),
                      ("padded", {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})):
        student, teacher = (bench.model("tiny", FLOAT32, seed, rope_parameters=rope, initializer_range=0.1, **size)
                            for seed in (1, 2))
        settings = Score(teacher_top_k=8, student_top_k=4, batch_tokens=512, head_rows=64)
        runs = [score_rollouts(table, student, teacher, vocabulary, settings) for _ in range(2)]
        errors = plain_errors(runs[0], table, student, teacher)
        figures += [Figure(f"scorer {way} float32: {name}", value, "nat", 1e-3, True) for name, value in errors.items()]
        figures.append(Figure(f"scorer {way}: repeats bit for bit", float(runs[0].equals(runs[1])), "", 1.0))
    return figures


@torch.inference_mode()
def plain_errors(scored, table, student, teacher) -> dict[str, float]:
    log_probs = {"student": [], "teacher": []}
    for prompt, said in zip(table["prompt_tokens"].to_pylist(), table["response_tokens"].to_pylist()):
        for side, model in (("student", student), ("teacher", teacher)):
            ids = torch.tensor([prompt + said], device=model.device)
            log_probs[side].append(model(ids).logits[0, len(prompt) - 1:-1].double().log_softmax(-1).cpu())
    token = torch.from_numpy(scored["token_id"].to_numpy().astype(np.int64))[:, None]
    errors = {}
    for side, found in log_probs.items():
        log_p = torch.cat(found)
        for column, expected in ((f"{side}_log_prob", log_p.gather(1, token)[:, 0]),
                                 (f"{side}_entropy", -(log_p.exp() * log_p).sum(1))):
            stored = torch.from_numpy(scored[column].to_numpy().astype(np.float64))
            errors[column] = (stored - expected).abs().max().item()
    return errors


def packed(bench: Bench) -> list[Figure]:
    """torch's varlen kernel, which takes bfloat16 alone, against a plain pass of the same model. On the CPU: sdpa."""
    table = random_rollouts(3, 2, 6, 8, 300) if bench.tiny else random_rollouts(6, 4, 40, 60, 3000)
    size = {} if bench.tiny else {"hidden_size": 512, "vocab_size": 3000, "num_hidden_layers": 4}
    dtype = BFLOAT16 if bench.gpu else FLOAT32
    student, teacher = (bench.model("tiny", dtype, seed, initializer_range=0.05, **size) for seed in (1, 2))
    scored = score_rollouts(table, student, teacher, size.get("vocab_size", 300),
                            Score(teacher_top_k=8, student_top_k=4, batch_tokens=512, head_rows=64))
    errors = plain_errors(scored, table, student, teacher)
    bench.notes["why padded"] = [why_padded(model) for model in (student, teacher)]
    return [Figure("scorer in bfloat16: rollouts are packed", float(why_padded(student) is None), "", 1.0),
            *(Figure(f"scorer in bfloat16: {name}", value, "nat", 0.1, True) for name, value in errors.items())]


def decoding(bench: Bench) -> list[Figure]:
    """Sampling in float32 from one counter per token: the CPU's tokens, but for ties within rounding."""
    prompts = [np.arange(1, 5 + i % 3, dtype=np.int32) for i in range(16)]
    sampling = Sampling(temperature=0.8, top_p=0.9, max_new_tokens=8 if bench.tiny else 64, stop_ids=(5,),
                        vocabulary=300)
    here, there = (TransformersEngine(each.model("tiny", FLOAT32, 1, initializer_range=0.1), 16).generate(
        prompts, range(16), sampling) for each in (bench, Bench(torch.device("cpu"), bench.tiny)))
    same = sum(np.array_equal(here.tokens(i), there.tokens(i)) for i in range(16))
    return [Figure("decoding: rollouts of 16 that are the CPU's", float(same), "", 15)]


def trainer(bench: Bench) -> list[Figure]:
    """Three float32 steps of the whole trainer on both devices, from the same weights and the same cached scores."""
    student, data = made_up_round(bench)
    figures = []
    for config in (TeacherTopKLsm(), TailBucketTopK()):
        losses = [three_losses(copy.deepcopy(student).to(device), data, config)
                  for device in (torch.device("cpu"), bench.device, bench.device)]
        error = max(abs(a - b) / abs(a) for a, b in zip(losses[0], losses[1]))
        name = f"trainer {config.type}"
        figures += [Figure(f"{name}: losses of 3 steps against the CPU", error, "relative", 1e-4, True),
                    Figure(f"{name}: losses repeat bit for bit", float(losses[1] == losses[2]), "", 1.0)]
    return figures


def half_trainer(bench: Bench) -> list[Figure]:
    """Autocast, gradient checkpointing and the varlen kernel's gradients, against padded rows and against float32."""
    model, data = made_up_round(bench)
    precision = "bfloat16" if bench.gpu else "float32"
    runs = {name: three_losses(copy.deepcopy(model).to(bench.device), data, TeacherTopKLsm(), **changes)
            for name, changes in (("float32", {}), ("padded", {"precision": precision, "packing": "padded"}),
                                  ("packed", {"precision": precision, "packing": "packed",
                                              "gradient_checkpointing": True}))}
    return [Figure(f"trainer in bfloat16, {name}: losses of 3 steps against float32",
                   max(abs(a - b) / abs(a) for a, b in zip(runs["float32"], runs[name])), "relative", 0.05, True)
            for name in ("padded", "packed")]


def sharded_trainer(bench: Bench) -> list[Figure]:
    """FSDP2 on one rank, by NCCL on a GPU: the whole model's losses."""
    model, data = made_up_round(bench)
    expected = three_losses(copy.deepcopy(model).to(bench.device), data, TeacherTopKLsm())
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("nccl" if bench.gpu else "gloo", init_method=f"file://{folder}/meeting",
                                             rank=0, world_size=1)
        try:
            ranks = Ranks(torch.device("cuda", 0) if bench.gpu else bench.device)
            with torch.device("meta"):
                empty = Qwen2ForCausalLM(model.config).eval()
            sharded = ShardedModel(empty, ranks, "float32")
            sharded.fill(model)
            found = three_losses(empty, data, TeacherTopKLsm(), sharded=sharded, ranks=ranks)
        finally:
            torch.distributed.destroy_process_group()
    return [Figure("trainer sharded by FSDP2: losses of 3 steps against the whole model",
                   max(abs(a - b) / abs(a) for a, b in zip(expected, found)), "relative", 1e-5, True)]


def made_up_round(bench: Bench):
    """(a student on the CPU, its scored round)."""
    cpu = Bench(torch.device("cpu"), bench.tiny)
    student, teacher = (cpu.model("tiny", FLOAT32, seed, initializer_range=0.1) for seed in (1, 2))
    table = random_rollouts(4, 2, 6, 12, 300)
    tokens = score_rollouts(table, student, teacher, 300, Score(teacher_top_k=8, student_top_k=4))
    return student, join(table, tokens, unmasked(tokens), "here")


def three_losses(model, data, config, sharded=None, ranks=OneProcess(), **changes) -> list[float]:
    settings = Train(**{"learning_rate": 1e-3, "warmup_steps": 0, "drift_fuse": None, "packing": "padded", **changes})
    packed = use_packing(model, settings.packing, settings.precision, "sdpa")
    student = Student(model, precision=settings.precision, gradient_checkpointing=settings.gradient_checkpointing,
                      sharded=sharded)
    optimizer = adamw(student.weights, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    trained = Trainer(student, optimizer, build(config), settings, data, grid=32, packed=packed, ranks=ranks)
    everything = np.arange(len(data.rollout_id_R))
    return [trained.step(everything)["loss"] for _ in range(3)]
