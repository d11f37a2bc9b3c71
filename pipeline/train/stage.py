"""The train stage: one pass over a round's cached tokens, from the student that wrote them to the next one.

    opd train --run R --round 3

Reads the rollout, score and mask shards that have receipts, checkpoint=3, and for objectives over the whole vocabulary
the teacher's hidden states, or the teacher itself. Writes the steps table and checkpoint=4. It has one shard. Same
inputs, same config, same number of threads: same bytes.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline import objectives
from pipeline.config.model import Model
from pipeline.context import RoundContext
from pipeline.models import device, load_model
from pipeline.objectives.custom import refuse_edited
from pipeline.train.checkpoint import write_checkpoint
from pipeline.train.optimizer import adamw, load_state
from pipeline.train.reader import read_round
from pipeline.train.student import Student
from pipeline.train.teacher import CachedTeacher, open_teacher
from pipeline.train.trainer import Trainer
from storage import schemas
from storage.rounds import CheckpointFiles, Receipt, local_checkpoint, put_checkpoint, starting_checkpoint

INPUT_STAGES = ("rollout", "score", "mask")


def run(context: RoundContext, shard: int = 0) -> Receipt:
    """Train on the round, put the next checkpoint, and finish the stage's only shard."""
    assert shard == 0, "the train stage has one shard"
    trained = train(context)
    with tempfile.TemporaryDirectory(prefix="opd-checkpoint-") as folder:
        trained.write_checkpoint(Path(folder))
        checkpoint = put_checkpoint(context.store, context.run, context.number + 1, Path(folder))
    return context.round.finish("train", shard, "steps", trained.steps, inputs=_inputs(context, trained),
                                facts=trained.facts, checkpoint=checkpoint)


@dataclass(frozen=True)
class Trained:
    """A student after its round, not yet in the store."""

    trainer: Trainer
    start: CheckpointFiles
    folder: Path
    """Where the starting checkpoint lies on this machine."""
    steps: pa.Table
    facts: dict

    def write_checkpoint(self, folder: Path) -> None:
        """Write the student, its optimizer and the start's other files into an empty folder."""
        trainer = self.trainer
        write_checkpoint(trainer.student.model, trainer.optimizer, trainer.run_steps, self.folder, folder)


def train(context: RoundContext) -> Trained:
    """Train on the round; writes nothing."""
    config, settings = context.config, context.config.train
    refuse_edited(config.objective, context.document)
    start = starting_checkpoint(context.store, context.run, context.number)
    folder = local_checkpoint(context.store, start, optimizer=True)
    data = read_round(context.round, start.fingerprint)
    model = load_model(folder, dtype="float32", attention=training_attention(config.student), device=device(),
                       trust_remote_code=config.student.trust_remote_code)
    student = Student(model, precision=settings.precision, vocabulary=context.document["vocabulary"]["shared"],
                      gradient_checkpointing=settings.gradient_checkpointing)
    optimizer = adamw(model, learning_rate=settings.learning_rate, betas=(settings.beta1, settings.beta2),
                      eps=settings.eps, weight_decay=settings.weight_decay)
    # A starting student may come with the optimizer of the run that made it: a new run begins with its own.
    run_steps = load_state(optimizer, model, folder) if context.number else 0
    objective = objectives.build(config.objective, settings.reduction)
    trainer = Trainer(student, optimizer, objective, settings, data, grid=config.score.grid, run_steps=run_steps,
                      teacher=open_teacher(context, objective, data))
    steps = trainer.train_round(config.seed, context.number, context.progress)
    return Trained(trainer, start, folder, pa.Table.from_pylist(steps, schema=schemas.STEPS),
                   {"steps": len(steps), "run_steps": trainer.run_steps, "stopped": trainer.stopped,
                    "closing": trainer.closing()})


def training_attention(student: Model) -> str:
    """How the trainer computes attention: as rollout and scoring do, where that works on float32 weights.

    flash_attention_2 has no float32 kernel: load_model's check of the head runs outside of autocast and would fail.
    Training with it under autocast is left out until it was tried on a GPU.
    """
    return "sdpa" if student.attention == "flash_attention_2" else student.attention


def _inputs(context: RoundContext, trained: Trained) -> dict[str, str]:
    """Key and sha256 of every file that training read."""
    inputs = {file.key: file.sha256 for file in trained.start.files}
    for stage in INPUT_STAGES:
        inputs.update(context.round.input_files(stage))
    if isinstance(trained.trainer.teacher, CachedTeacher):
        inputs.update(context.round.input_files("hidden"))
        inputs.update({file.key: file.sha256 for file in context.round.receipts("hidden")[0].head.files})
    return inputs
