"""The children that compute a run's shards on this machine: one for each GPU, each pinned to its own.

    with Team(workers) as team:
        seats = team.seats(["rollout", "score"], config)     # config: that of run.json
        compute(seats, work, play)                           # play(child, stage, shard) for every shard of `work`

On a GPU a child serves one stage and ends with it, so that all it holds leaves the device. Without one it stays as long
as the team and drops its models after each stage: 0.06 s less per stage, and the prompts are read once. So does a child
that holds a vLLM engine, on a GPU too: it is told to rest whenever another stage needs the device.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context

from flows import limits
from flows.child import Child, ChildFailed, OnProgress
from flows.order import STREAMED
from flows.work import Work
from pipeline.config.workers import Workers
from pipeline.context import silent
from storage.claims import Place
from storage.errors import UserError

SPREAD = frozenset({"rollout", "score", "hidden", "continuation", "evaluate"})
"""Stages whose shards are computed side by side. Prompts take no time; masks and training see a whole round."""
WRITING = frozenset({"rollout", "continuation", "evaluate"})
"""Stages that ask the rollout engine."""

Play = Callable[["Lent", str, int], object]

_present: ContextVar["Team | None"] = ContextVar("team", default=None)


class Lent:
    """A child in the hands of one shard, which has it back as soon as it can begin another."""

    def __init__(self, child: Child, on_free: Callable[[], None]):
        self._child, self._on_free = child, on_free

    def call(self, job: str, on_progress: OnProgress, **arguments) -> dict:
        """See Child.call."""
        return self._child.call(job, on_progress, self._on_free, **arguments)


class Seat:
    """One device, or the several of one engine, and the child that is at work there."""

    def __init__(self, gpus: Sequence[str], pinned: bool, keeps_engine: bool):
        self.gpus, self._keeps_engine = tuple(gpus), keeps_engine
        self._environment = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if pinned else {}
        self._engine = Child(self._environment)
        self._other = Child(self._environment)
        self._stage: str | None = None
        self.killed = False

    def child(self, stage: str) -> Child:
        """The child for a stage; that of the stage before gives the device back."""
        if stage != self._stage:
            self.rest()
            self._stage = stage
        return self._engine if self._keeps(stage) else self._other

    def rest(self) -> None:
        """Give the device back: the child ends, an engine that is kept frees its memory. Without a GPU it is memory
        alone that the child gives back."""
        if self._stage is not None and self._keeps(self._stage) and self._engine.alive:
            self._engine.call("rest", silent)
        if self.gpus:
            self._other.close()
        elif self._stage is not None and self._other.alive:
            self._drop()
        self._stage = None

    def _drop(self) -> None:
        """Have the child forget its models. One that fails at it ends, its last shard is finished; and so does one that
        holds a GPU which no nvidia-smi told of."""
        try:
            holds = self._other.call("drop", silent)["device"]
        except ChildFailed:
            holds = True
        if holds:
            self._other.close()

    def kill(self) -> None:
        """End the children at once and for good, also in the middle of a call."""
        self.killed = True
        self._engine.kill()
        self._other.kill()

    def close(self) -> None:
        """End both children, an engine with its own farewell."""
        if self._engine.alive:
            with contextlib.suppress(ChildFailed):
                self._engine.call("end_engine", silent)
        self._engine.close()
        self._other.close()

    def _keeps(self, stage: str) -> bool:
        return self._keeps_engine and stage in WRITING


class Team:
    """The seats of this process, made when they are first needed."""

    def __init__(self, workers: Workers):
        self.workers = workers
        self._seats: dict[tuple, Seat] = {}

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *_) -> None:
        for seat in self._seats.values():
            seat.close()

    def streams(self, config: dict) -> bool:
        """Whether stages of a run are played together, shard by shard: where several children work side by side. An
        engine of several GPUs shares none of them with the scorer."""
        alone = all(_gpus_of(stage, config) == 1 for stage in STREAMED)
        return self.workers.stream and alone and (
            self.workers.pool is not None or len(self._groups(["score"], config)) > 1)

    def seats(self, stages: Sequence[str], config: dict) -> list[Seat]:
        """Who computes shards of these stages. Raises UserError for more processes than there are GPUs."""
        keeps = config["rollout"]["engine"]["type"] == "vllm"
        groups = self._groups(stages, config)
        keys = [(index, tuple(gpus), pinned) for index, (gpus, pinned) in enumerate(groups)]
        for key in keys:
            if key in self._seats and self._seats[key].killed:  # a flow that Prefect was told to retry
                self._seats.pop(key).close()
        return [self._seats.setdefault(key, Seat(*key[1:], keeps)) for key in keys]

    def child(self, stage: str, config: dict) -> Child:
        """The child that computes a stage's first shard."""
        return self.seats([stage], config)[0].child(stage)

    def _groups(self, stages: Sequence[str], config: dict) -> list[tuple[list[str], bool]]:
        """(GPUs, whether the child sees these alone) of each seat; no GPUs where there are none."""
        gpus = limits.gpus_here()
        if not SPREAD.issuperset(stages):
            ranks = config["train"].get("ranks", 1) if "train" in stages else 1
            return [(gpus[:ranks], False)]
        if not gpus:
            return [([], False)] * (self.workers.processes or 1)
        each = max(_gpus_of(stage, config) for stage in stages)
        count = self.workers.processes or max(len(gpus) // each, 1)
        if count * each > len(gpus):
            engine = f" with {each} for each engine" if each > 1 else ""
            raise UserError(f"{count} processes{engine} need {count * each} GPUs, and {len(gpus)} are visible here: "
                            "lower workers.processes, or see nvidia-smi and CUDA_VISIBLE_DEVICES")
        return [(gpus[index * each:(index + 1) * each], len(gpus) > each) for index in range(count)]


@contextmanager
def gathered(workers: Workers) -> Iterator[Team]:
    """The team of the flow that this one is nested in, which outlives it; without one, a team of its own."""
    if team := _present.get():
        yield team
        return
    with Team(workers) as team:
        token = _present.set(team)
        try:
            yield team
        finally:
            _present.reset(token)


def compute(seats: Sequence[Seat], work: Work, play: Play) -> None:
    """Compute all shards of `work`. Raises the first error, once every other shard that was begun is finished."""
    if len(seats) == 1:
        _sit(seats[0], work, play)
    else:
        _sit_together(seats, work, play)
    if work.error:
        raise work.error


def _sit_together(seats: Sequence[Seat], work: Work, play: Play) -> None:
    threads = [threading.Thread(target=copy_context().run, args=(_sit, seat, work, play), daemon=True)
               for seat in seats]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C reaches the main thread alone
        work.stop(error)
        for seat in seats:
            seat.kill()
        for thread in threads:
            thread.join()
        raise


def _sit(seat: Seat, work: Work, play: Play) -> None:
    """Compute shards until nothing is left, then give the device back. While one is being finished the next is begun,
    in the same child: only of the same stage, since the child of another wants the device for itself."""
    stage, begun = None, []
    try:
        while place := work.take(stage):
            if place[0] != stage:
                _join(begun)
            stage = place[0]
            begun = [each for each in begun if each.is_alive()] + [_Playing(seat, work, play, place)]
            begun[-1].free.wait()
        _join(begun)
        if work.error is None:
            seat.rest()
    except Exception as error:  # the store is away: what was begun is finished
        work.stop(error)
        _join(begun)
    except BaseException as error:  # Ctrl-C
        work.stop(error)
    if work.error:
        seat.kill()
        _join(begun)


class _Playing(threading.Thread):
    """A shard that is played in a thread of its own; `free` is set once its child can begin another."""

    def __init__(self, seat: Seat, work: Work, play: Play, place: Place):
        super().__init__(target=copy_context().run, args=(self._play, seat, work, play, place), daemon=True)
        self.free = threading.Event()
        self.start()

    def _play(self, seat: Seat, work: Work, play: Play, place: Place) -> None:
        try:
            play(Lent(seat.child(place[0]), self.free.set), *place)
            work.done(*place)
        except BaseException as error:
            work.stop(error, place)
        finally:
            self.free.set()


def _join(threads: list[_Playing]) -> None:
    while threads:
        threads.pop().join()


def _gpus_of(stage: str, config: dict) -> int:
    """GPUs that one process of a stage needs: those of its vLLM engine, else one."""
    section = "rollout" if stage in WRITING else stage
    engine = config.get(section, {}).get("engine") or {}
    return engine.get("tensor_parallel", 1) * engine.get("data_parallel", 1)
