"""Build the support head's Triton kernels for an NVIDIA GPU of a compute capability, which need not be there:

    python tests/train/support_kernel_build.py 90 CACHE_FOLDER

Prints a line per kernel and pair of dtypes with its registers, and fails where the compiler refuses one or keeps
its sums in memory instead of registers.
"""

import os
import re
import subprocess
import sys
import tempfile

os.environ["TRITON_CACHE_DIR"] = sys.argv[2]

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.knobs import nvidia  # noqa: E402

from pipeline.train.support import kernels  # noqa: E402

WIDTH = 3584
SPILL_BYTES = 32
"""Per thread: the assembler trades a few for occupancy."""
KERNELS = {
    "dots": (kernels._dots_kernel, kernels.DOTS, ("hidden", "weight", "ids", "out"),
             ("support", "hidden_stride", "weight_stride"), {}),
    "bags": (kernels._bags_kernel, kernels.BAGS, ("weight", "ids", "grad", "out", "more"),
             ("support", "weight_stride"), {"MORE": True}),
    "rare": (kernels._segments_kernel, kernels.RARE_IDS,
             ("buffer", "hidden", "grad", "order", "ids", "offsets", "counts", "places"),
             ("support", "hidden_stride", "buffer_stride", "limit"), {"RARE": True}),
    "frequent": (kernels._segments_kernel, kernels.FREQUENT_IDS,
                 ("buffer", "hidden", "grad", "order", "ids", "offsets", "counts", "places"),
                 ("support", "hidden_stride", "buffer_stride", "limit"), {"RARE": False}),
}
INTEGERS = {"ids", "order", "offsets", "counts", "places"}


def types(kernel: str, pointers: tuple[str, ...], hidden: str, weight: str) -> dict[str, str]:
    found = {name: "*i64" if name in INTEGERS else "*fp32" for name in pointers}
    found |= {name: f"*{hidden}" for name in pointers if name == "hidden"}
    found |= {name: f"*{weight}" for name in pointers if name in ("weight", "buffer")}
    if kernel == "bags":
        found["out"] = f"*{hidden}"
    return found


def build(name: str, hidden: str, weight: str, capability: int):
    """As a launch would: addresses, strides and a support of 32 or 64 ids are multiples of 16."""
    kernel, tile, pointers, numbers, more = KERNELS[name]
    constants = {"WIDTH": WIDTH, "ROWS": tile.rows, "COLUMNS": tile.columns, "SUM": triton.language.float32, **more}
    signature = types(name, pointers, hidden, weight) | dict.fromkeys(numbers, "i32")
    signature |= dict.fromkeys(constants, "constexpr")
    ordered = {argument: signature[argument] for argument in kernel.arg_names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(ordered) if name not in constants}
    return triton.compile(ASTSource(kernel, ordered, constants, aligned), target=GPUTarget("cuda", capability, 32),
                          options={"num_warps": tile.warps})


def told_by_ptxas(ptx: str, capability: int) -> str:
    """What the assembler says of registers and spills."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        arch = f"sm_{capability}" + ("a" if capability >= 90 else "")
        told = subprocess.run([nvidia.ptxas.path, "-v", f"--gpu-name={arch}", file.name, "-o", os.devnull],
                              capture_output=True, text=True, check=True).stderr
    return " ".join(line.split(":")[-1].strip() for line in told.splitlines() if "registers" in line or "spill" in line)


for kernel_name in KERNELS:
    for dtypes in (("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16")):
        said = told_by_ptxas(build(kernel_name, *dtypes, int(sys.argv[1])).asm["ptx"], int(sys.argv[1]))
        assert int(re.search(r"(\d+) bytes spill stores", said)[1]) <= SPILL_BYTES, (kernel_name, dtypes, said)
        print(f"built {kernel_name} {dtypes}: {said}")
