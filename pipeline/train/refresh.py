"""When a round's cached rollouts have served: the age cap and the drift fuse.

Every step trains on what p_0 wrote. Dense cached losses stay flat for about 120 steps, sampled-token ones degrade from
4 to 16, because a teacher's top-K depends on the prefix alone (objectives.md). Two limits end a round's training early:

    age cap     optimizer steps taken on these rollouts; train.age_cap, else the objective's own
    drift fuse  KL(p_0 || p_now) over p_0's cached top-k and its tail, at the probed 1/32 of the positions

The fuse is not E[log p_0(y) - log p_now(y)]: under top-p .9 a student that had sharpened by a KL of .064 read -.012.
"""

from collections import deque

POSITIONS = 128
"""Probed positions that the fuse's mean rests on: one step of the quickstart probes about 40, whose mean is between
.001 and .27 nats where the round's is .1."""

DONE, AGE_CAP, DRIFT_FUSE = "done", "age_cap", "drift_fuse"
"""Why a round's training ended."""


class DriftFuse:
    """Blows once the mean drift of the latest steps, which together probed at least POSITIONS, is above `limit`."""

    def __init__(self, limit: float | None):
        self._limit = limit
        self._latest: deque[tuple[float, int]] = deque()

    def blows(self, drift: float | None, positions: int) -> bool:
        """Take in a step's mean drift over its probed positions."""
        if self._limit is None or not positions or drift is None:
            return False
        self._latest.append((drift * positions, positions))
        while sum(count for _, count in self._latest) - self._latest[0][1] >= POSITIONS:
            self._latest.popleft()
        count = sum(count for _, count in self._latest)
        return count >= POSITIONS and sum(total for total, _ in self._latest) / count > self._limit
