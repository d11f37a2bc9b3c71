"""Who is at work on which shard, among workers that see nothing of each other but the store.

    claims = Claims(store, run, number, lease_s=60)
    if claims.take("score", 7):           # nobody else is at work on it, or who was is silent
        ...                               # compute and finish it; from another thread, now and then: claims.renew()
        claims.give_back("score", 7)

Claims save work and nothing else: that a shard counts once is decided by its receipt, whoever computed it.

A claim is a row of objects, `claims/<stage>-<i>/0.json`, `1.json`, ...: its beats. Who puts the first one, if absent,
has the shard, and goes on putting the next one while at work; the last two stay. Who wants a shard whose newest beat
has not changed for `lease_s` of *watching* puts the next one in the owner's stead, and is the owner from there on;
should both put the same beat, one of them wins. Where the beat before is gone the claim was given back or has gone on
without whoever asks. So no clock is compared with another's, and no verb but those of every store is needed. A worker
that lost its claim while it was away (a laptop's lid, a network) finishes its shard all the same: a loser's file is an
orphan that no receipt names.

A worker that has no shard yet, because it waits for a device, claims its own number, `claims/worker-<i>/`: `attend`.
So who waits for it sees that it lives.
"""

import threading
import time
from dataclasses import dataclass
from uuid import uuid4

from storage import documents, layout
from storage.errors import MissingObject
from storage.objects import ObjectStore, exists

Place = tuple[str, int]
"""(stage, shard), or (WORKER, its number)."""


@dataclass(frozen=True)
class _Seen:
    """The newest beat of somebody's claim, and since when, by this process's clock, it has been that."""

    beat: int
    since_s: float


class Claims:
    """The claims of one round, as one process sees them. May be used from several threads."""

    def __init__(self, store: ObjectStore, run: str, number: int, lease_s: float):
        self._store, self._run, self._number, self.lease_s = store, run, number, lease_s
        self._me = uuid4().hex
        self._own: dict[Place, int] = {}
        self._seen: dict[Place, _Seen] = {}
        self._lock = threading.RLock()

    def look(self) -> dict[Place, int]:
        """Newest beat of every claim in the store: one listing."""
        prefix = layout.claims_prefix(self._run, self._number)
        beats: dict[Place, int] = {}
        for info in self._store.list(prefix):
            folder, _, file = info.key.removeprefix(prefix).partition("/")
            stage, _, shard = folder.rpartition("-")
            beat = file.removesuffix(".json")
            if stage in (*layout.STAGES, layout.WORKER) and shard.isdecimal() and beat.isdecimal():
                beats[stage, int(shard)] = max(int(beat), beats.get((stage, int(shard)), -1))
        with self._lock:
            self._remember(beats)
        return beats

    def take(self, stage: str, shard: int) -> bool:
        """Claim a shard that is free as of the last `look`, or whose owner has been silent. False: not now."""
        with self._lock:
            seen = self._seen.get((stage, shard))
            if seen and not self.silent(stage, shard):
                return False
            return self._beat((stage, shard), seen.beat + 1 if seen else 0)

    def renew(self) -> None:
        """Show that this process lives, for every shard that it has. What another has taken over is let go."""
        with self._lock:
            for place, beat in list(self._own.items()):
                if not self._beat(place, beat + 1):
                    del self._own[place]

    def give_back(self, stage: str, shard: int) -> None:
        """Forget a shard that is finished, or failed; its beats leave the store."""
        with self._lock:
            beat = self._own.pop((stage, shard), None)
        if beat is not None:
            self._delete(stage, shard)

    def attend(self, worker: int) -> None:
        """Show with every `renew` that the worker of this number lives, until `give_back(WORKER, worker)`. What an
        earlier process of the same number has left is removed."""
        self._delete(layout.WORKER, worker)
        self._beat((layout.WORKER, worker), 0)

    def silent(self, stage: str, shard: int) -> bool:
        """Whether a claim's owner has shown no life for a lease of looks; False where there was no claim."""
        with self._lock:
            seen = self._seen.get((stage, shard))
            return seen is not None and time.monotonic() - seen.since_s >= self.lease_s

    def clear(self) -> None:
        """Remove every claim of the round from the store: its stages are finished."""
        for info in list(self._store.list(layout.claims_prefix(self._run, self._number))):
            self._store.delete(info.key)

    def _remember(self, beats: dict[Place, int]) -> None:
        now = time.monotonic()
        self._seen = {place: self._seen[place] if place in self._seen and self._seen[place].beat == beat
                      else _Seen(beat, now) for place, beat in beats.items() if place not in self._own}

    def _beat(self, place: Place, beat: int) -> bool:
        if beat and not exists(self._store, self._key(place, beat - 1)):
            return False
        key = self._key(place, beat)
        data = documents.dump({"beat": beat, "owner": self._me})
        if not self._store.put_if_absent(key, data) and not self._is_there(key, data):
            return False
        self._own[place] = beat
        self._seen.pop(place, None)
        if beat > 1:  # a row of a night's work would be listed every second by everybody
            self._store.delete(self._key(place, beat - 2))
        return True

    def _key(self, place: Place, beat: int) -> str:
        return layout.claim(self._run, self._number, *place, beat)

    def _is_there(self, key: str, data: bytes) -> bool:
        """Whether it was put all the same: a put whose answer was lost is sent again, and then says False."""
        try:
            return self._store.get(key) == data
        except MissingObject:
            return False

    def _delete(self, stage: str, shard: int) -> None:
        prefix = self._key((stage, shard), 0).rpartition("/")[0] + "/"
        for info in list(self._store.list(prefix)):
            self._store.delete(info.key)
