"""What a first run on a GPU would show, as far as it can be seen without one (tests/pretend_cuda.py)."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
@pytest.mark.skipif(torch.version.cuda is not None, reason="this build of torch has a real CUDA")
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler, which builds a device for autograd")
def test_training_scoring_and_decoding_run_on_tensors_that_say_cuda():
    said = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.pretend_cuda", "-p",
                           "no:cacheprovider", "tests/shared/gpu_cases.py"], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout[-4000:] + said.stderr[-2000:]
