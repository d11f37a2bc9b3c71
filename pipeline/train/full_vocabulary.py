"""A divergence of student and teacher over all shared ids, in chunks of them, with its exact gradient.

    L_n = sum_{v < vocab} f(log p_nv, log q_nv),       log p_nv = z_nv - lse(z_n),   log q_nv = t_nv - lse(t_n)
    dL_n / dz_nv = g_nv - p_nv G_n,                    g = df / dlog p,   G_n = sum_v g_nv

Never holds [N, V]. Pass 1 sums both normalisers, pass 2 the losses and G; the backward pass computes every chunk of
logits again. f is any divergence of pipeline/objectives/divergence.py: a plain sum over ids, differentiated by autograd
within the chunk. The weight's gradient goes straight into weight.grad, or with `in_place=False` to autograd
(in_place.py); the teacher gets none. Everything is computed in float32 (float64 if an input is), whatever the dtypes
of hidden states and heads.
Price: the student's head is multiplied 5 times and the teacher's 3 times, where full logits need 3 and 1. 256 positions
at width 896 and 151,936 ids take one thread 6.4 s and 60 MB forward and backward, with full logits 3.9 s and 975 MB.

Shapes: N positions, D student and E teacher width, V vocabulary, C a chunk of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.models import Head
from pipeline.objectives.divergence import Divergence
from pipeline.objectives.outside import FLOOR
from pipeline.objectives.support import LEAST_LOG_Q
from pipeline.train.in_place import add_product_, gradient_target
from pipeline.train.log_normaliser import Sweep
from pipeline.train.squash import compute_dtype, slope


def full_vocabulary_loss(hidden_ND: Tensor, head: Head, teacher_hidden_NE: Tensor, teacher_head: Head,
                         divergence: Divergence, *, stop_gradient: bool = False, vocab: int | None = None,
                         in_place: bool = True) -> Tensor:
    """loss_N over the first `vocab` ids (all of the student's head if None), in nats (Rethinking OPD, eq. 4, for
    reverse_kl). Differentiable in hidden_ND and in the student's weight and bias, which must be leaves if `in_place`.

    `divergence` must be a sum over ids of a function of log p and log q there. A logit of -inf is probability 0: the
    student's gets no gradient, mass on the teacher's costs -LEAST_LOG_Q nats, as on a support.
    """
    vocab = len(head.weight_VD) if vocab is None else vocab
    assert vocab <= min(len(head.weight_VD), len(teacher_head.weight_VD)), "a head has fewer rows than ids are shared"
    dtype = compute_dtype(hidden_ND, head.weight_VD, teacher_hidden_NE, teacher_head.weight_VD)
    comparison = _Comparison(_Side.of(head, vocab, dtype), _Side.of(teacher_head, vocab, dtype), divergence,
                             stop_gradient)
    return _FullVocabulary.apply(hidden_ND, head.weight_VD, head.bias, teacher_hidden_NE.detach(), comparison, in_place)


@dataclass(frozen=True)
class _Side:
    """One model's head."""

    head: Head
    sweep: Sweep

    @classmethod
    def of(cls, head: Head, vocab: int, dtype: torch.dtype) -> "_Side":
        return cls(head, Sweep(vocab, head.scale, head.softcap, dtype))

    def weight(self, chunk: slice) -> Tensor:
        return self.head.weight_VD[chunk].to(self.sweep.dtype)

    def logits(self, rows_ND: Tensor, weight_CD: Tensor, chunk: slice) -> Tensor:
        return self.sweep.logits(rows_ND, weight_CD, None if self.head.bias is None else self.head.bias[chunk])

    def log_normaliser(self, rows_ND: Tensor, chunks: list[slice]) -> tuple[Tensor, Tensor]:
        """lse_N1 as two parts whose sum it is: rounded to float32 alone it moves every log-prob by up to 1e-6, and
        added up over chunks in float32 by 1e-5."""
        lse_N1 = rows_ND.new_full((len(rows_ND), 1), -torch.inf, dtype=torch.float64)
        for chunk in chunks:
            logits_NC = self.logits(rows_ND, self.weight(chunk), chunk)
            largest_N1 = logits_NC.amax(1, keepdim=True).clamp_min(torch.finfo(logits_NC.dtype).min)
            sum_N1 = logits_NC.sub_(largest_N1).exp_().sum(1, keepdim=True)
            lse_N1 = torch.logaddexp(lse_N1, largest_N1.double() + sum_N1.double().log())
        high_N1 = lse_N1.to(rows_ND.dtype)
        return high_N1, (lse_N1 - high_N1).to(rows_ND.dtype)


@dataclass(frozen=True)
class _Comparison:
    """What is compared, and how."""

    student: _Side
    teacher: _Side
    divergence: Divergence
    stop_gradient: bool

    @property
    def dtype(self) -> torch.dtype:
        return self.student.sweep.dtype

    def chunks(self, rows_ND: Tensor) -> list[slice]:
        return [slice(start, end) for start, end in self.student.sweep.spans(rows_ND)]

    def teacher_log_probs(self, rows_NE: Tensor, lse: tuple[Tensor, Tensor], chunk: slice) -> Tensor:
        logits_NC = self.teacher.logits(rows_NE, self.teacher.weight(chunk), chunk)
        return logits_NC.sub_(lse[0]).sub_(lse[1]).clamp_min_(LEAST_LOG_Q)

    def terms(self, log_p_NC: Tensor, log_q_NC: Tensor) -> tuple[Tensor, Tensor]:
        """(sum over the chunk of f, df / dlog p of each id)."""
        leaf_NC = log_p_NC.detach().requires_grad_()
        with torch.enable_grad():
            loss_N = self.divergence(leaf_NC.clamp_min(FLOOR), log_q_NC, self.stop_gradient)
            return loss_N.detach(), torch.autograd.grad(loss_N.sum(), leaf_NC)[0]


class _FullVocabulary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, teacher_hidden_NE, comparison, in_place):
        student, teacher = comparison.student, comparison.teacher
        rows_ND, rows_NE = hidden_ND.to(comparison.dtype), teacher_hidden_NE.to(comparison.dtype)
        chunks = comparison.chunks(rows_ND)
        lse_p, lse_q = student.log_normaliser(rows_ND, chunks), teacher.log_normaliser(rows_NE, chunks)
        loss_N, slopes_N = rows_ND.new_zeros(len(rows_ND)), rows_ND.new_zeros(len(rows_ND))
        for chunk in chunks:
            log_p_NC = student.logits(rows_ND, student.weight(chunk), chunk).sub_(lse_p[0]).sub_(lse_p[1])
            part_N, slopes_NC = comparison.terms(log_p_NC, comparison.teacher_log_probs(rows_NE, lse_q, chunk))
            loss_N += part_N
            slopes_N += slopes_NC.sum(1)
        ctx.save_for_backward(hidden_ND, teacher_hidden_NE, *lse_p, *lse_q, slopes_N)
        ctx.weight_VD, ctx.bias_V, ctx.comparison, ctx.in_place = weight_VD, bias_V, comparison, in_place
        return loss_N

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_N):
        hidden_ND, teacher_hidden_NE, *lse, slopes_N = ctx.saved_tensors
        lse_p, lse_q, comparison = lse[:2], lse[2:], ctx.comparison
        student, head = comparison.student, comparison.student.head
        rows_ND, rows_NE = hidden_ND.to(comparison.dtype), teacher_hidden_NE.to(comparison.dtype)
        grad_rows_ND = torch.zeros_like(rows_ND)
        buffer_VD, grad_weight_VD = gradient_target(ctx.weight_VD, ctx.needs_input_grad[1], ctx.in_place)
        buffer_V, grad_bias_V = gradient_target(ctx.bias_V, ctx.needs_input_grad[2], ctx.in_place)
        for chunk in comparison.chunks(rows_ND):
            weight_CD = student.weight(chunk)
            logits_NC = student.logits(rows_ND, weight_CD, chunk)
            log_p_NC = (logits_NC - lse_p[0]).sub_(lse_p[1])
            log_q_NC = comparison.teacher_log_probs(rows_NE, lse_q, chunk)
            grad_NC = comparison.terms(log_p_NC, log_q_NC)[1]
            grad_NC = grad_NC.sub_(log_p_NC.exp_().mul_(slopes_N[:, None])).mul_(grad_N[:, None])
            grad_NC = grad_NC.mul_(slope(logits_NC, head.scale, head.softcap))
            if ctx.needs_input_grad[0]:
                grad_rows_ND.addmm_(grad_NC, weight_CD)
            if buffer_VD is not None:
                add_product_(buffer_VD[chunk], grad_NC, rows_ND)
            if buffer_V is not None:
                buffer_V[chunk] += grad_NC.sum(0)
        return grad_rows_ND.to(hidden_ND.dtype), grad_weight_VD, grad_bias_V, None, None, None
