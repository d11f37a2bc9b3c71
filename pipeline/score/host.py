"""Between device and host without waiting: on a GPU the copy of one chunk's statistics runs behind the computation of
the next, on a CPU nothing is copied.

The order is that of one CUDA stream: a copy starts once its chunk is computed, and an event behind it says when the
pinned memory may be read. The device's memory is used again by later kernels of the same stream alone, and pinned
memory by torch's host allocator, which waits for the copies it took part in.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

AHEAD = 2
"""Chunks on their way: one that is copied, one that is computed."""
Place = TypeVar("Place")


def to_host(chunks: Iterable[tuple[Place, dict[str, Tensor]]]) -> Iterator[tuple[Place, dict[str, np.ndarray]]]:
    """Yield every chunk's statistics as arrays, in order, while the next are computed."""
    under_way = deque()
    for place, statistics in chunks:
        under_way.append((place, *_send(statistics)))
        if len(under_way) > AHEAD:
            yield _receive(*under_way.popleft())
    while under_way:
        yield _receive(*under_way.popleft())


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy that the host does not wait for; on a CPU the array itself."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _send(statistics: dict[str, Tensor]) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
    if not any(values.is_cuda for values in statistics.values()):
        return statistics, None
    pinned = {name: torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
              for name, values in statistics.items()}
    copied = torch.cuda.Event()
    copied.record()
    return pinned, copied


def _receive(place: Place, statistics: dict[str, Tensor],
             copied: torch.cuda.Event | None) -> tuple[Place, dict[str, np.ndarray]]:
    if copied is not None:
        copied.synchronize()
    return place, {name: values.numpy() for name, values in statistics.items()}
