"""Which of the support head's paths runs: by the device, and on a GPU by what each would cost.

    cpu      csr.py
    cuda     gemm.py, kernels.py or hybrid.py, whichever `seconds` says is fastest; gemm where
             Triton is not installed or no C compiler is at hand, which it needs to launch kernels
    others   gemm.py
On a CPU the path depends on the device alone, never on sizes.

The rule is a roofline. With N positions of S ids at width D, C and U positions and distinct ids of a chunk:
    gemm     three products of 2 C U D operations per chunk at the rate of the tensor cores for the operands' dtype;
             rows u of W are read and written twice, of the gradient read and written once
    fused    N S D numbers of W read twice and of H once at the rate of gathering; distinct rows of the gradient read
             and written once
    hybrid   the same without the pairs of the F frequent ids; for these three products of 2 N F D operations
RATES are estimates for an H200 from data sheets and from figures others measured (a bfloat16 product of 8192 x 8192 x
8192 at 788 TFLOP/s, a copy at 4.3 TB/s), not from a run of these kernels. benchmarks/gpu.py measures both paths and
prints the rates that explain them: put those here.

Shapes: N positions, D model width, V vocabulary, S support entries, U distinct ids.
"""

import importlib.util
import os
import shutil
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


RATES = Rates()


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


def seconds(problem: Problem, rates: Rates = RATES) -> dict[str, float]:
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
    if not (hidden_ND.is_cuda and triton_runs()):
        return gemm
    cost = seconds(Problem.of(hidden_ND, weight_VD, index))
    return paths()[min(cost, key=cost.__getitem__)]


def paths() -> dict[str, ModuleType]:
    """Those that run where Triton does. Imported here because Triton is optional and slow to import."""
    from pipeline.train.support import hybrid, kernels

    return {"gemm": gemm, "fused": kernels, "hybrid": hybrid}


@cache
def triton_runs() -> bool:
    """Whether Triton is installed and can build the launchers of its kernels."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    return importlib.util.find_spec("triton") is not None and compiler is not None
