"""Gradients that are added to a parameter's .grad row by row, where autograd would build a dense [V, D] matrix.

A parameter that gets its gradient here must be a leaf, and training must call `backward()`, not `autograd.grad`.
Whatever autograd itself adds to the same parameter (a tied embedding) ends up in the same buffer. Hooks on a parameter,
which are how FSDP2 reduces gradients over ranks, do not see additions to .grad: `in_place=False` of the functions that
differentiate a head returns a dense gradient to autograd instead, at the price of one [V, D] tensor each.

Shapes: V vocabulary, D model width, M rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.distinct import distinct_writes
from pipeline.train.support.products import product


def gradient_buffer(parameter: Tensor) -> Tensor:
    """The parameter's .grad, made of zeros if there is none."""
    assert parameter.is_leaf, "gradients are added in place to leaves only: pass the parameter itself, not a view of it"
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def gradient_target(parameter: Tensor | None, needed: bool, in_place: bool) -> tuple[Tensor | None, Tensor | None]:
    """(what a backward pass adds the parameter's gradient to, what it returns to autograd)."""
    if not needed:
        return None, None
    if in_place:
        return gradient_buffer(parameter), None
    buffer = torch.zeros_like(parameter)
    return buffer, buffer


def add_product_(buffer_CD: Tensor, grad_NC: Tensor, hidden_ND: Tensor) -> None:
    """buffer += grad^T hidden, for the C rows of a chunk of the vocabulary and N positions."""
    if buffer_CD.dtype == hidden_ND.dtype == grad_NC.dtype:
        buffer_CD.addmm_(grad_NC.t(), hidden_ND)
    else:
        buffer_CD += product(grad_NC.t(), hidden_ND)


def embed(input_ids: Tensor, weight_VD: Tensor) -> Tensor:
    """Rows of `weight_VD`; their gradient is added to weight_VD.grad."""
    return _Embed.apply(input_ids, weight_VD)


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input_ids, weight_VD):
        ctx.input_ids, ctx.weight_VD = input_ids, weight_VD
        return F.embedding(input_ids, weight_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        buffer_VD, ids_M = gradient_buffer(ctx.weight_VD), ctx.input_ids.flatten()
        rows_MD = grad.reshape(-1, grad.shape[-1]).to(buffer_VD.dtype)
        if buffer_VD.device.type != "cpu":
            ids_M, rows_MD = summed(ids_M, rows_MD)
        with distinct_writes(buffer_VD):
            buffer_VD.index_add_(0, ids_M, rows_MD)
        return None, None


def summed(ids_M: Tensor, rows_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct ids, and the sums of their rows: so that no addition to a row depends on the order of a GPU's threads.
    The host waits for their number."""
    sorted_M, order_M = ids_M.sort(stable=True)
    ids_U, counts_U = sorted_M.unique_consecutive(return_counts=True)
    return ids_U, F.embedding_bag(order_M, rows_MD, counts_U.cumsum(0) - counts_U, mode="sum")
