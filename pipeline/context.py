"""What every stage is handed: the store, the run's resolved config, and one round of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.config import RunConfig
from pipeline.versions import refuse_other_versions
from storage.objects import ObjectStore, open_store
from storage.rounds import Round, read_run

Progress = Callable[[str, int, int], None]
"""progress(what, done, total): called often, must be cheap."""


def silent(what: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


@dataclass(frozen=True)
class RoundContext:
    """One round of one run, and everything a stage may know."""

    store: ObjectStore
    run: str
    number: int
    config: RunConfig
    document: dict
    """run.json: resolved config, versions, model fingerprints."""
    round: Round
    progress: Progress = field(default=silent)
    notes: dict = field(default_factory=dict)
    """What a stage wants in its shard's timings: facts of this execution, which no hash covers."""

    @property
    def prompt_seed(self) -> int:
        """Decides prompts and rollouts: the config's seed, in a branch that of the run it comes from, whose prompts it
        goes on with. The order of training has the config's own."""
        return (self.document["branch"] or {}).get("prompt_seed", self.config.seed)


def open_context(store_url: str, run: str, number: int, progress: Progress = silent) -> RoundContext:
    """Open round `number` of `run`.

    Raises UserError if the store or the run does not exist, or if the run began with other versions than are here.
    """
    store = open_store(store_url)
    document = read_run(store, run)
    refuse_other_versions(run, document.get("versions", {}))
    config = RunConfig.model_validate({**document["config"], "store": store_url})
    return RoundContext(store, run, number, config, document, Round(store, run, number), progress)
