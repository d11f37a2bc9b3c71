"""The output head at the ids of a support: K logits per position instead of V.

    z_ns = squash(h_n . w_{id(n, s)} + b_{id(n, s)}),   squash(x) = softcap * tanh(scale * x / softcap)

A loss on z needs 6 * K * D operations per position, forward and backward; the dense head needs 6 * V * D.
  forward   a sampled product: one dot product per pair (n, s)
  dH_n      = sum_s g_ns w_{id(n, s)}: a weighted bag of rows of W
  dW_u      = sum of g_ns h_n over the pairs with id u: a weighted bag of rows of H, added to weight.grad in place
The three are computed by sparse matrices on a CPU, by dense products over distinct ids or by fused Triton kernels on a
GPU (paths.py says which). Sums are float32 (float64 if an input is), whatever the dtypes of H and W.

Gradients of weight and bias go straight into .grad (in_place.py), or with `in_place=False` to autograd, whole: for
sharded training, whose hooks must see them.

Shapes: N positions, D model width, V vocabulary, S support entries, P = N * S pairs, U distinct ids.
"""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.distinct import distinct_writes
from pipeline.objectives.batch import StudentLogits
from pipeline.train import log_normaliser as normaliser
from pipeline.train.in_place import gradient_target
from pipeline.train.squash import slope, squash
from pipeline.train.support.index import CHUNK, SupportIndex
from pipeline.train.support.paths import path_of


def student_logits(hidden_ND: Tensor, weight_VD: Tensor, index: SupportIndex, *, log_normaliser: bool,
                   bias: Tensor | None = None, scale: float = 1.0, softcap: float | None = None,
                   vocab: int | None = None, in_place: bool = True, path: ModuleType | None = None) -> StudentLogits:
    """What `Objective.loss` needs. `log_normaliser`: with the sums over the first `vocab` rows of the head (all if
    None), the ids both models share."""
    options = {"bias": bias, "scale": scale, "softcap": softcap, "in_place": in_place}
    logits_NS = support_logits(hidden_ND, weight_VD, index, path=path, **options)
    if not log_normaliser:
        return StudentLogits(logits_NS)
    log_outside_N = normaliser.log_normaliser(hidden_ND, weight_VD, vocab=vocab, exclude=index, **options)
    log_inside_N = logits_NS.masked_fill(~index.first_NS, -torch.inf).logsumexp(1)
    return StudentLogits(logits_NS, torch.logaddexp(log_inside_N, log_outside_N), log_outside_N)


def support_logits(hidden_ND: Tensor, weight_VD: Tensor, support: SupportIndex | Tensor, *,
                   bias: Tensor | None = None, scale: float = 1.0, softcap: float | None = None,
                   in_place: bool = True, path: ModuleType | None = None) -> Tensor:
    """logits_NS at a support, given as an index or as ids_NS. Differentiable in hidden, weight and bias.

    in_place: weight and bias must be leaves and get their gradients in .grad; else any tensors, and autograd gets dense
    gradients. path: instead of the one that paths chooses.
    """
    if not isinstance(support, SupportIndex):
        support = SupportIndex.build(support, None if hidden_ND.device.type == "cpu" else CHUNK)
    path = path or path_of(hidden_ND, weight_VD, support)
    return _SupportLogits.apply(hidden_ND, weight_VD, bias, support, scale, softcap, in_place, path)


class _SupportLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, index, scale, softcap, in_place, path):
        raw_NS = path.dots(hidden_ND, weight_VD, index)
        if bias_V is not None:
            raw_NS = raw_NS + bias_V[index.ids_NS].to(raw_NS.dtype)
        logits_NS = squash(raw_NS, scale, softcap)
        ctx.save_for_backward(hidden_ND, logits_NS if softcap else None)
        ctx.weight_VD, ctx.bias_V, ctx.index, ctx.path = weight_VD, bias_V, index, path
        ctx.scale, ctx.softcap, ctx.in_place = scale, softcap, in_place
        return logits_NS

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_NS):
        hidden_ND, logits_NS = ctx.saved_tensors
        grad_NS = (grad_NS * slope(logits_NS, ctx.scale, ctx.softcap)).contiguous()
        grad_hidden_ND = None
        if ctx.needs_input_grad[0]:
            grad_hidden_ND = ctx.path.hidden_gradient(hidden_ND, ctx.weight_VD, grad_NS, ctx.index)
        buffer_VD, grad_weight_VD = gradient_target(ctx.weight_VD, ctx.needs_input_grad[1], ctx.in_place)
        if buffer_VD is not None:
            ctx.path.add_weight_gradient(buffer_VD, hidden_ND, grad_NS, ctx.index)
        buffer_V, grad_bias_V = gradient_target(ctx.bias_V, ctx.needs_input_grad[2], ctx.in_place)
        if buffer_V is not None:
            _add_bias_gradient(buffer_V, grad_NS, ctx.index)
        return grad_hidden_ND, grad_weight_VD, grad_bias_V, None, None, None, None, None


def _add_bias_gradient(buffer_V: Tensor, grad_NS: Tensor, index: SupportIndex) -> None:
    """buffer[u] += sum of g_ns over the pairs with id u; off the CPU by distinct ids, so that no thread's order
    counts."""
    ids, sums = index.ids_NS.flatten(), grad_NS.flatten()
    if buffer_V.device.type != "cpu" and len(ids):
        ids, sums = index.ids_U, F.embedding_bag(index.order_P, sums[:, None], index.offsets_U, mode="sum")[:, 0]
    with distinct_writes(buffer_V):
        buffer_V.index_add_(0, ids, sums.to(buffer_V.dtype))
