"""Training on a round in this process: alone, or as one of several ranks, each on its part of every step."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline import objectives
from pipeline.context import RoundContext
from pipeline.objectives.custom import refuse_edited
from pipeline.train import adapter
from pipeline.train.checkpoint import carry, whole_weights, write_checkpoint, write_weights
from pipeline.train.opening import open_student
from pipeline.train.optimizer import state_tensors, write_state
from pipeline.train.parallel import OneProcess
from pipeline.train.reader import read_round
from pipeline.train.teacher import CachedTeacher, open_teacher
from pipeline.train.trainer import Trainer
from storage import schemas
from storage.rounds import CheckpointFiles, local_checkpoint, starting_checkpoint

INPUT_STAGES = ("rollout", "score", "mask")


@dataclass(frozen=True)
class Trained:
    """A student after its round, not yet in the store."""

    context: RoundContext
    trainer: Trainer
    ranks: OneProcess
    start: CheckpointFiles
    folder: Path | None
    """Where the starting checkpoint lies on this machine; None on all ranks but the first, as is `base`."""
    base: adapter.Base | None
    steps: pa.Table
    facts: dict

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.ranks.rank == 0

    def write_checkpoint(self, folder: Path) -> None:
        """Write the student, its optimizer and the start's other files into an empty folder: every rank calls it, since
        all hold a part, and the first one writes."""
        trainer, lora = self.trainer, self.trainer.settings.lora
        model, optimizer = trainer.student.model, trainer.optimizer
        if self.ranks.size == 1 and lora is None:
            write_checkpoint(model, optimizer, trainer.run_steps, self.folder, folder)
            return
        weights = whole_weights(model, keep=self.first)
        state = state_tensors(optimizer, trainer.student.weights, trainer.run_steps, keep=self.first)
        if not self.first:
            return
        if lora is not None:
            adapter.save_adapter(weights, lora, self.base.files, folder)
            weights = adapter.merged(weights, lora)
        write_weights(model, folder, weights)
        write_state(state, folder)
        carry(self.folder, folder)

    def inputs(self) -> dict[str, str]:
        """Key and sha256 of every file that training read."""
        read = [*self.start.files, *(self.base.files.files if self.base else ())]
        inputs = {file.key: file.sha256 for file in read}
        round = self.context.round
        for stage in INPUT_STAGES:
            inputs.update(round.input_files(stage))
        if isinstance(self.trainer.teacher, CachedTeacher):
            inputs.update(round.input_files("hidden"))
            inputs.update({file.key: file.sha256 for file in round.receipts("hidden")[0].head.files})
        return inputs


def train_round(context: RoundContext, ranks: OneProcess) -> Trained:
    """Train on the round; writes nothing."""
    config, settings = context.config, context.config.train
    refuse_edited(config.objective, context.document)
    start = starting_checkpoint(context.store, context.run, context.number)
    folder = local_checkpoint(context.store, start, optimizer=True) if ranks.rank == 0 else None
    data = read_round(context.round, start.fingerprint)
    base = adapter.find_base(context, start, folder) if folder else None
    opened = open_student(context, base, folder, ranks)
    objective = objectives.build(config.objective, settings.reduction)
    trainer = Trainer(opened.student, opened.optimizer, objective, settings, data, grid=config.score.grid,
                      run_steps=opened.run_steps, teacher=open_teacher(context, objective, data), ranks=ranks,
                      packed=opened.packed)
    steps = trainer.train_round(config.seed, context.number, context.progress)
    facts = {"steps": len(steps), "run_steps": trainer.run_steps, "stopped": trainer.stopped,
             "closing": trainer.closing(), **({"ranks": ranks.size} if ranks.size > 1 else {})}
    return Trained(context, trainer, ranks, start, folder, base,
                   pa.Table.from_pylist(steps, schema=schemas.STEPS), facts)
