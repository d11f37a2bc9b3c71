"""The Triton kernels, run by Triton's interpreter on a CPU (on the GPU itself where there is one), and built for GPUs
that are not here.

The interpreter is chosen when Triton is first imported, and other tests may have done so: hence processes of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
HERE = Path(__file__).parent
GPU = torch.cuda.is_available()


def run(*command: str, interpreted: bool) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    environment.pop("PYTEST_ADDOPTS", None)
    environment["TRITON_INTERPRET"] = "1" if interpreted else "0"
    child = subprocess.run([sys.executable, *command], env=environment, cwd=HERE.parents[1], capture_output=True,
                           text=True)
    assert child.returncode == 0, child.stdout[-6000:] + child.stderr[-2000:]
    return child.stdout


@pytest.mark.timeout(180)
def test_the_kernels_agree_with_slow_references():
    """The cases are in support_kernel_cases.py."""
    said = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "-c", os.devnull,
               f"--rootdir={HERE.parents[1]}", str(HERE / "support_kernel_cases.py"), interpreted=not GPU)
    assert "passed" in said and "failed" not in said


@pytest.mark.timeout(180)
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_build_for_gpus_that_are_not_here_without_spilling_registers(capability, tmp_path):
    said = run(str(HERE / "support_kernel_build.py"), str(capability), str(tmp_path), interpreted=False)
    assert said.count("built") == 12
