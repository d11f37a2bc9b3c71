"""Gradients that are added to a parameter's .grad row by row, where autograd would build a dense [V, D] matrix.

A parameter that gets its gradient here must be a leaf, and training must call `backward()`, not `autograd.grad`.
Whatever autograd itself adds to the same parameter (a tied embedding) ends up in the same buffer.

Shapes: V vocabulary, D model width, M rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def gradient_buffer(parameter: Tensor) -> Tensor:
    """The parameter's .grad, made of zeros if there is none."""
    assert parameter.is_leaf, "gradients are added in place to leaves only: pass the parameter itself, not a view of it"
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def add_product_(buffer_CD: Tensor, grad_NC: Tensor, hidden_ND: Tensor) -> None:
    """buffer += grad^T hidden, for the C rows of a chunk of the vocabulary and N positions."""
    if buffer_CD.dtype == hidden_ND.dtype:
        buffer_CD.addmm_(grad_NC.t(), hidden_ND)
    else:
        buffer_CD += grad_NC.t() @ hidden_ND


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
        buffer_VD = gradient_buffer(ctx.weight_VD)
        rows_MD = grad.reshape(-1, grad.shape[-1]).to(buffer_VD.dtype)
        buffer_VD.index_add_(0, ctx.input_ids.flatten(), rows_MD)
        return None, None
