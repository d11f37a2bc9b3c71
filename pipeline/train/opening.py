"""What a round's training begins with: the student with its adapter, whole or cut over ranks, and its optimizer."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipeline.config.model import Model
from pipeline.config.train import Train
from pipeline.context import RoundContext
from pipeline.models import device, load_model
from pipeline.train import adapter, optimizer
from pipeline.train.attention import use_packing
from pipeline.train.compiling import compile_layers
from pipeline.train.optimizer import Named
from pipeline.train.parallel import OneProcess
from pipeline.train.student import Student


@dataclass(frozen=True)
class Opened:
    """A student that is ready for its round's first step."""

    student: Student
    optimizer: torch.optim.Optimizer
    run_steps: int
    packed: bool


def open_student(context: RoundContext, base: adapter.Base | None, start: Path | None, ranks: OneProcess) -> Opened:
    """`start` is the starting checkpoint's folder, `base` what lies under its adapter: None on all ranks but the first.

    Raises UserError where a setting of [train] asks for what this model or this machine cannot do.
    """
    settings = context.config.train
    model, sharded = _open_model(context, base, ranks)
    packed = use_packing(model, settings.packing, settings.precision, training_attention(context.config.student))
    student = Student(model, precision=settings.precision, vocabulary=context.document["vocabulary"]["shared"],
                      gradient_checkpointing=settings.gradient_checkpointing, sharded=sharded)
    if student.device.type == "cuda" and settings.precision == "bfloat16":
        torch.set_float32_matmul_precision("high")  # of the normaliser's products: 6 times faster in TF32
    if settings.compile:
        compile_layers(model)
    stepper = open_optimizer(settings, student.weights)
    known = start if start is not None and adapter.goes_on(context, start) else None
    if sharded is None:
        run_steps = optimizer.load_state(stepper, model, known) if known else 0
    else:
        run_steps = sharded.fill_state(stepper, *(optimizer.read_state(sharded, known) if known else (0, {})))
    return Opened(student, stepper, run_steps, packed)


def open_optimizer(settings: Train, weights: Named) -> torch.optim.Optimizer:
    """The optimizer of [train], without state."""
    build = optimizer.adamw8bit if settings.optimizer == "adamw8bit" else optimizer.adamw
    return build(weights, learning_rate=settings.learning_rate, betas=(settings.beta1, settings.beta2),
                 eps=settings.eps, weight_decay=settings.weight_decay)


def training_attention(student: Model) -> str:
    """What the trainer loads the student with: flash_attention_2 has no float32 kernel, so sdpa stands in for it, and
    train.packing decides on the kernel of packed rollouts."""
    return "sdpa" if student.attention == "flash_attention_2" else student.attention


def _open_model(context: RoundContext, base: adapter.Base | None, ranks: OneProcess):
    """(model, how it is cut over ranks or None)."""
    settings, attention = context.config.train, training_attention(context.config.student)
    source = None
    if base is not None:
        source = load_model(base.folder, dtype="float32", attention=attention,
                            device=device() if ranks.size == 1 else torch.device("cpu"),
                            trust_remote_code=context.config.student.trust_remote_code)
        _adapt(source, context)
        if base.adapter is not None:
            adapter.load_adapter(source, base.adapter)
    if ranks.size == 1:
        return source, None
    from pipeline.train.sharded import ShardedModel, empty_model

    model = empty_model(ranks.send(base and (base.folder / "config.json").read_bytes()), attention)
    with torch.device("meta"):
        _adapt(model, context)
    sharded = ShardedModel(model, ranks, settings.precision)
    sharded.fill(source)
    return model, sharded


def _adapt(model: nn.Module, context: RoundContext) -> None:
    if context.config.train.lora is not None:
        adapter.add_adapter(model, context.config.train.lora, context.config.seed)
