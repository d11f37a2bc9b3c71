"""Writes to places that are all different, or of one value: no order of threads can change them.

A stage tells torch to use deterministic kernels alone (pipeline/stages.py). On a GPU those of `index_put_`,
`index_add_` and `scatter_` sort the places first and copy what is written, also where no place occurs twice, which
costs several times the write; that of `scatter_` on a matrix waits for the device besides. Within `distinct_writes` the
plain kernels run.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def distinct_writes(into: Tensor) -> Iterator[None]:
    """On a GPU; elsewhere nothing changes."""
    if not (into.is_cuda and torch.are_deterministic_algorithms_enabled()):
        yield
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)
