"""Which of the support head's paths runs: by the device, and on a GPU by what each would cost.

    cpu      csr.py
    cuda     gemm.py, kernels.py or hybrid.py, whichever `seconds` says is fastest; gemm where Triton is not installed,
             or cannot build and launch a kernel: it needs a C compiler, Python's headers and a place for its cache
    others   gemm.py
On a CPU the path depends on the device alone, never on sizes.

The rule is a roofline. With N positions of S ids at width D, C and U positions and distinct ids of a chunk:
    gemm     three products of 2 C U D operations per chunk at the rate of the tensor cores for the operands' dtype;
             rows u of W are read and written twice, of the gradient read and written once
    fused    N S D numbers of W read twice and of H once at the rate of gathering; distinct rows of the gradient read
             and written once
    hybrid   the same without the pairs of the F frequent ids; for these three products of 2 N F D operations
The rule is computed and not timed in each run: which path runs decides over the last bits, and a round that is replayed
on the same kind of GPU has to take the same one.
ESTIMATED are for an H200 from data sheets and from figures others measured (a bfloat16 product of 8192 x 8192 x 8192 at
788 TFLOP/s, a copy at 4.3 TB/s), not from a run of these kernels. benchmarks/gpu.py measures the paths, and prints the
line of MEASURED for the GPU that it ran on.

Shapes: N positions, D model width, V vocabulary, S support entries, U distinct ids.
"""

import importlib.util
import os
import shutil
import warnings
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from pipeline.train.support import csr, gemm
from pipeline.train.support.index import SupportIndex
from pipeline.train.support.products import operand_dtype


@dataclass(frozen=True)
class Rates:
    """Of one GPU."""

    gathered: float = 3.5e12
    """Bytes per second that the fused kernels gather: L2 and memory together."""
    streamed: float = 3.5e12
    """Bytes per second of rows that are copied, read and written counted."""
    products: dict[str, float] = field(default_factory=lambda: {
        "bfloat16": 500e12, "tf32": 250e12, "float32": 45e12, "float64": 45e12})
    """Operations per second of a product, by what the operands are multiplied in."""


ESTIMATED = Rates()
MEASURED: dict[str, Rates] = {}
"""By a word of the device's name; ESTIMATED for others."""


@dataclass(frozen=True)
class Problem:
    """What the cost depends on."""

    pairs: int
    width: int
    distinct: int
    """Ids of the whole call."""
    chunk_products: int
    """Sum over chunks of positions * distinct ids."""
    chunk_distinct: int
    """Sum over chunks of distinct ids."""
    frequent_pairs: int
    frequent_products: int
    """Positions * frequent ids; 0 without a list of them."""
    hidden_bytes: int
    weight_bytes: int
    operands: str

    @classmethod
    def of(cls, hidden_ND: Tensor, weight_VD: Tensor, index: SupportIndex) -> "Problem":
        chunks, frequent = index.chunks or (index,), index.frequent
        return cls(index.ids_NS.numel(), hidden_ND.shape[1], len(index.ids_U),
                   sum(len(chunk.ids_NS) * len(chunk.ids_U) for chunk in chunks),
                   sum(len(chunk.ids_U) for chunk in chunks),
                   len(frequent.pairs_Q) if frequent else 0, len(index.ids_NS) * len(frequent.ids_F) if frequent else 0,
                   hidden_ND.element_size(), weight_VD.element_size(),
                   _multiplied_in(operand_dtype(hidden_ND, weight_VD)))


def _multiplied_in(dtype: torch.dtype) -> str:
    tf32 = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if tf32 else str(dtype).removeprefix("torch.")


def seconds(problem: Problem, rates: Rates = ESTIMATED) -> dict[str, float]:
    """Estimated time of forward and backward by path."""
    width, row = problem.width, problem.width * problem.weight_bytes
    gemm = 6 * problem.chunk_products * width / rates.products[problem.operands]
    gemm += problem.chunk_distinct * row * 6 / rates.streamed
    pair = width * (2 * problem.weight_bytes + problem.hidden_bytes) / rates.gathered
    fused = problem.pairs * pair + problem.distinct * row * 2 / rates.streamed
    if not problem.frequent_pairs:
        return {"gemm": gemm, "fused": fused}
    multiplied = 6 * problem.frequent_products * width / rates.products[problem.operands]
    return {"gemm": gemm, "fused": fused, "hybrid": fused - problem.frequent_pairs * pair + multiplied}


def path_of(hidden_ND: Tensor, weight_VD: Tensor, index: SupportIndex) -> ModuleType:
    """The module whose `dots`, `hidden_gradient` and `add_weight_gradient` run."""
    if hidden_ND.device.type == "cpu":
        return csr
    if not (hidden_ND.is_cuda and triton_runs() and launches(hidden_ND.device)):
        return gemm
    cost = seconds(Problem.of(hidden_ND, weight_VD, index), rates_of(torch.cuda.get_device_name(hidden_ND.device)))
    return paths()[min(cost, key=cost.__getitem__)]


def rates_of(device_name: str) -> Rates:
    """Measured ones if there are, as of "H200" for "NVIDIA H200"."""
    return next((rates for name, rates in MEASURED.items() if name in device_name), ESTIMATED)


def paths() -> dict[str, ModuleType]:
    """Those that run where Triton does. Imported here because Triton is optional and slow to import."""
    from pipeline.train.support import hybrid, kernels

    return {"gemm": gemm, "fused": kernels, "hybrid": hybrid}


@cache
def launches(device: torch.device) -> bool:
    """Whether a kernel gives the right answer; tried once per process and device, with a warning if not."""
    from pipeline.train.support import kernels

    try:
        ones = torch.ones(1, 16, device=device)
        return kernels.dots_at(ones, ones, torch.zeros(1, 1, dtype=torch.long, device=device)).item() == 16
    except Exception as error:  # whatever keeps Triton from building: no Python.h, no libcuda.so, a cache that is full
        line = " ".join(str(error).split())[:200]
        warnings.warn(f"Triton cannot run a kernel here, so the support head takes dense products, which are slower "
                      f"({type(error).__name__}: {line})", stacklevel=2)
        return False


@cache
def triton_runs() -> bool:
    """Whether Triton is installed with a C compiler, which builds the launchers of its kernels."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    return importlib.util.find_spec("triton") is not None and compiler is not None
