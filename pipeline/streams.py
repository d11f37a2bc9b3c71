"""Random numbers by counting instead of by state: SplitMix64 (Steele, Lea, Flood 2014) as a hash and as a stream.

Stored runs depend on every bit of both: a test freezes them.

Shapes: B streams, T outputs of each.
"""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash64(*parts) -> np.ndarray:
    """64-bit hash of integers, arrays broadcast: SplitMix64's finaliser over a running sum."""
    with np.errstate(over="ignore"):
        state = np.uint64(0)
        for part in parts:
            state = _finalised(state + np.asarray(part).astype(np.uint64) + GOLDEN)
    return state


def uniforms(seeds: np.ndarray, count: int) -> np.ndarray:
    """float64 [B, T] in [0, 1): output number t of SplitMix64 started at each seed."""
    with np.errstate(over="ignore"):
        counters_T = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * GOLDEN
        output_BT = _finalised(np.asarray(seeds).astype(np.uint64)[:, None] + counters_T)
    return (output_BT >> np.uint64(11)) * 2.0 ** -53


def _finalised(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
