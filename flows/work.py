"""Shards that are left of some stages, handed out to whoever is free: threads of one process, and with claims also
processes elsewhere that see the same store.

    work = Work(round, {"rollout": [0, 1, 2], "score": [0, 1, 2]})
    while place := work.take(stage_before):
        ...                                    # compute it
        work.done(*place)

A shard is handed out once what it reads has its receipt, so that shard 0 is scored while shard 2 is being written. Who
asks stays in the stage of before while there is something to do, since its models are loaded; else the earliest stage
is taken. Nobody idles while a shard is ready.
"""

import threading
from collections.abc import Mapping, Sequence

from pipeline.stages import NEEDS_SHARD
from storage.claims import Claims, Place
from storage.rounds import Round

POLL_S = 1.0
"""How often the store is asked what others have finished or let go."""


class Work:
    """`left` maps stages, in their order, to their shards without a receipt."""

    def __init__(self, round: Round, left: Mapping[str, Sequence[int]], claims: Claims | None = None):
        self._round, self._claims, self.stages = round, claims, list(left)
        self._left = {(stage, shard) for stage, shards in left.items() for shard in shards}
        self._taken: set[Place] = set()
        self._changed = threading.Condition()
        self.total, self.handed_out = len(self._left), 0
        self.error: BaseException | None = None

    def take(self, before: str | None) -> Place | None:
        """A shard for whoever worked on stage `before`; None when nothing is left. Waits for one that is not ready."""
        with self._changed:
            while self._left and self.error is None:
                if self._claims:
                    self._look_elsewhere()
                if place := self._ready(before):
                    self._taken.add(place)
                    self.handed_out += 1
                    return place
                self._changed.wait(POLL_S if self._claims else None)
            return None

    def done(self, stage: str, shard: int) -> None:
        """A shard that was taken has its receipt."""
        with self._changed:
            self._left.discard((stage, shard))
            self._let_go(stage, shard)

    def stop(self, error: BaseException, place: Place | None = None) -> None:
        """Hand out nothing more. The first error stays; what others are at work on is finished by them."""
        with self._changed:
            self.error = self.error or error
            if place:
                self._let_go(*place)
            self._changed.notify_all()

    def _ready(self, before: str | None) -> Place | None:
        stages = sorted(self.stages, key=lambda stage: stage != before)  # stable: else the earliest first
        free = (place for stage in stages for place in sorted(self._left - self._taken) if place[0] == stage)
        return next((place for place in free if self._inputs_are_there(*place)
                     and (self._claims is None or self._claims.take(*place))), None)

    def _inputs_are_there(self, stage: str, shard: int) -> bool:
        return (NEEDS_SHARD.get(stage), shard) not in self._left

    def _look_elsewhere(self) -> None:
        """Claims first: one that is gone has left a receipt."""
        self._claims.look()
        pending = {(stage, shard) for stage in self.stages for shard in self._round.pending(stage)}
        self._left &= pending | self._taken

    def _let_go(self, stage: str, shard: int) -> None:
        self._taken.discard((stage, shard))
        if self._claims:
            self._claims.give_back(stage, shard)
        self._changed.notify_all()
