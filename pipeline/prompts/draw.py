"""Which prompts a round asks, and the seeds of its rollouts: functions of (run seed, round) and the pool.

The pool is shuffled anew in every epoch: epoch e orders it by sha256(seed, e, prompt_id). The epochs are laid end to
end, and round n takes the slots [n * P, (n + 1) * P). A round that reaches into the next epoch may meet a prompt
again that it has drawn already; such prompts are put off until that round is full, so no round asks a prompt twice,
and every epoch still asks each prompt once.
"""

import hashlib
from collections.abc import Callable, Iterable

from storage.errors import UserError


def hash63(*parts: int | str | None) -> int:
    """The first 63 bits of sha256 over the parts, each with its type and length."""
    return hasher63(*parts)()


def hasher63(*first: int | str | None) -> Callable[..., int]:
    """hash63 of many that begin with the same parts, which are hashed once: takes the rest of the parts."""
    begun = hashlib.sha256(_framed(first))

    def finished(*rest: int | str | None) -> int:
        digest = begun.copy()
        digest.update(_framed(rest))
        return int.from_bytes(digest.digest()[:8], "big") >> 1

    return finished


def _framed(parts: Iterable[int | str | None]) -> bytes:
    texts = [repr(part).encode() for part in parts]
    return b"".join(len(text).to_bytes(8, "little") + text for text in texts)


def rollout_id(seed: int, round: int, prompt_id: int, sample: int) -> int:
    """63-bit id of one rollout of a run."""
    return hash63("rollout", seed, round, prompt_id, sample)


def rollout_seed(seed: int, round: int, prompt_id: int, sample: int) -> int:
    """63-bit seed of the stream of random numbers that one rollout is drawn from."""
    return hash63("stream", seed, round, prompt_id, sample)


def draw_round(pool: Iterable[int], seed: int, number: int, count: int) -> list[int]:
    """The `count` prompt ids of round `number`, in the order drawn. Raises UserError for a pool that is too small."""
    pool = sorted(pool)
    check_size(len(pool), count)
    first = number * count
    aligned = _aligned_epoch(first // len(pool), len(pool), count)
    slots: list[int] = []
    for epoch in range(aligned, (first + count - 1) // len(pool) + 1):
        slots += _epoch(pool, seed, epoch, slots[-len(pool):], count)
    start = first - aligned * len(pool)
    return slots[start:start + count]


def check_size(pool: int, count: int) -> None:
    """Raise UserError unless a round can draw `count` different prompts."""
    if count > pool:
        raise UserError(f"prompts.per_round = {count} is more than the {pool} prompts there are (after filters, "
                        "without duplicates): lower it, or use a larger source")


def _epoch(pool: list[int], seed: int, epoch: int, previous: list[int], count: int) -> list[int]:
    """The order of one epoch, given that of the epoch before (not used where a round begins with this epoch)."""
    order = sorted(pool, key=hasher63("order", seed, epoch))
    drawn = epoch * len(pool) % count  # slots that the round across the border has in the previous epoch
    if drawn == 0:
        return order
    taken = set(previous[-drawn:])
    fresh = [prompt_id for prompt_id in order if prompt_id not in taken][:count - drawn]
    first = set(fresh)
    return fresh + [prompt_id for prompt_id in order if prompt_id not in first]


def _aligned_epoch(epoch: int, pool: int, count: int) -> int:
    """The last epoch up to `epoch` that begins with a round: its order depends on no other."""
    while epoch * pool % count:
        epoch -= 1
    return epoch
