"""What a run brought: exact match on held-out problems of its student before and after, and of its teacher.

    found = closing(load_config(Path("examples/quickstart.toml")))
    found.before.mean, found.after.mean, found.teacher.mean, found.gap_recovery

All three answer the same problems, sampled as the run's rollouts were. Needs a generated source (its other split is
what is asked) and at least one committed round.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.config import RunConfig
from pipeline.config.model import GeneratedSource, Model
from pipeline.evaluate.accuracy import Accuracy, accuracy, gap_recovery
from pipeline.prompts.generated import Problem
from pipeline.prompts.generated import problems as generate
from storage.checkpoints import local_checkpoint, starting_checkpoint
from storage.errors import UserError
from storage.objects import open_store
from storage.rounds import committed_rounds

HELD_OUT_SEED = 1234
"""Of the problems asked, whatever the run's seed: runs are compared on the same ones."""


@dataclass(frozen=True)
class Closing:
    """The closing table."""

    before: Accuracy
    after: Accuracy
    teacher: Accuracy
    rounds: int

    @property
    def gap_recovery(self) -> float | None:
        """(after - before) / (teacher - before)."""
        return gap_recovery(self.before.mean, self.after.mean, self.teacher.mean)

    def as_dict(self) -> dict:
        """Plain data; each accuracy with its mean and interval."""
        models = {name: getattr(self, name).as_dict() for name in ("before", "after", "teacher")}
        return {**models, "rounds": self.rounds, "gap_recovery": self.gap_recovery}


def closing(config: RunConfig, problems: int = 200, samples: int = 4,
            progress: Callable[[str, int, int], None] | None = None) -> Closing:
    """Grade the student that began the run, the one that its last committed round made, and the teacher."""
    asked, store = held_out(config, problems), open_store(config.store)
    rounds = len(committed_rounds(store, config.run))
    if rounds == 0:
        raise UserError(f"run {config.run} has no committed round yet: `opd run` it first")

    def student(number: int) -> Model:
        folder = local_checkpoint(store, starting_checkpoint(store, config.run, number))
        return config.student.model_copy(update={"path": str(folder), "revision": None})

    def grade(name: str, model: Model) -> Accuracy:
        report = None if progress is None else lambda _, done, total: progress(name, done, total)
        return accuracy(model, asked, config.prompts, config.rollout, samples=samples, progress=report)

    return Closing(grade("student before", student(0)), grade("student after", student(rounds)),
                   grade("teacher", config.teacher), rounds)


def held_out(config: RunConfig, count: int) -> list[Problem]:
    """Problems of the source's generator that no training split holds."""
    source = config.prompts.source
    if not isinstance(source, GeneratedSource) or source.split != "train":
        raise UserError("a closing table needs prompts.source.type = 'generated' with split = 'train': the held-out "
                        "split is what it asks")
    return generate(source.generator, HELD_OUT_SEED, count, "held_out")
