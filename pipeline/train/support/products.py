"""Matrix products whose operands may be bfloat16 and whose sums never are.

On a CPU both operands are turned into float32. A GPU multiplies two bfloat16 matrices as they are and sums in float32:
the products are exact there, only the order of the sums differs; a gradient that is multiplied with them is rounded to
bfloat16, as in a dense bfloat16 head. Float16 has no exponents for gradients and is turned into float32 everywhere.
Float32 is multiplied as torch.set_float32_matmul_precision says: exactly by default, by TF32 with "high".
"""

import torch
from torch import Tensor

from pipeline.train.squash import compute_dtype


def operand_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What hidden states, weight and the gradient between them are multiplied in."""
    if hidden.is_cuda and hidden.dtype == weight.dtype == torch.bfloat16:
        return torch.bfloat16
    return compute_dtype(hidden, weight)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of two matrices of one dtype: bfloat16 to float32, others to their own."""
    if a.dtype == torch.bfloat16:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b
