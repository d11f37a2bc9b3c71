"""From the host to a GPU without waiting: the copy runs behind what the device computes, in the order of its stream.

Pageable memory would be copied while the host waits until all earlier kernels are done.
"""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`; on a CPU itself. The pinned memory between is used again once the copy is done: torch's
    host allocator sees to that."""
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
