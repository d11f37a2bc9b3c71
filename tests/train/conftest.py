"""How training is run here as in the stage's own process."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """One thread, and kernels that repeat their bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
