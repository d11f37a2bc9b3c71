"""Random positions with whole distributions, the cache a scorer would make of them, and the student's logits.

Shapes: N positions, V vocabulary, K the teacher's stored list, k the student's, S support entries.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.objectives import StudentLogits, TokenBatch


@dataclass(frozen=True)
class States:
    """Raw logits of three models at N positions, and what was sampled there."""

    student_NV: Tensor
    """The student that is trained."""
    behaviour_NV: Tensor
    """The student that wrote the rollout, p_0."""
    teacher_NV: Tensor
    token_ids_N: Tensor
    sampling_log_prob_N: Tensor
    weight_N: Tensor
    rollout_N: Tensor
    position_N: Tensor
    stored_teacher: int
    stored_student: int

    def __len__(self) -> int:
        return len(self.token_ids_N)

    @property
    def kept(self) -> "States":
        """Without the positions of weight 0."""
        keep = self.weight_N != 0
        return replace(self, **{name: getattr(self, name)[keep] for name in vars(self) if name[-2:] in ("_N", "NV")})


def log_softmax(logits_NV: Tensor) -> Tensor:
    return logits_NV - logits_NV.logsumexp(-1, keepdim=True)


def ranked(logits_NV: Tensor, size: int) -> Tensor:
    """Most likely ids first; of equal ones the lower id first."""
    return logits_NV.sort(dim=-1, descending=True, stable=True).indices[:, :size]


def draw(seed: int, *, positions: int = 6, vocab: int = 50, stored_teacher: int = 8, stored_student: int = 5,
         sharpness: float = 2.0, agreement: float = 0.6, drift: float = 0.3, rollouts: int = 2, masked: bool = True,
         tied: bool = False, impossible: float = 0.0, nucleus: float = 0.9) -> States:
    """Random states. `agreement`: correlation of student and teacher; `drift`: distance of the student from p_0 in
    nats; `tied`: logits rounded to whole nats, so that lists are cut inside a tie; `impossible`: share of ids that a
    model gives probability 0, where no loss is infinite for it."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    teacher_NV = sharpness * noise(positions, vocab)
    behaviour_NV = agreement * teacher_NV + sharpness * (1 - agreement**2) ** 0.5 * noise(positions, vocab)
    student_NV = behaviour_NV + drift * noise(positions, vocab)
    if tied:
        teacher_NV, behaviour_NV, student_NV = teacher_NV.round(), behaviour_NV.round(), student_NV.round()
    possible_NV = teacher_NV
    if impossible:
        teacher_NV, behaviour_NV, student_NV = forbid(teacher_NV, behaviour_NV, student_NV, impossible, generator,
                                                      stored_teacher, stored_student)
    sampled, sampling_log_prob_N = nucleus_sample(behaviour_NV, nucleus, generator)
    teacher_NV = teacher_NV.scatter(1, sampled[:, None], possible_NV.gather(1, sampled[:, None]))
    weight_N = torch.ones(positions, dtype=torch.float64)
    if masked:
        weight_N[1::4] = 0.0
        weight_N[2::4] = 0.5
    rollout_N = torch.arange(positions) * rollouts // positions
    first_N = torch.searchsorted(rollout_N, rollout_N)
    position_N = torch.arange(positions) - first_N + 2 * (torch.arange(positions) - first_N > 1)
    return States(student_NV, behaviour_NV, teacher_NV, sampled, sampling_log_prob_N, weight_N, rollout_N, position_N,
                  stored_teacher, stored_student)


def forbid(teacher_NV: Tensor, behaviour_NV: Tensor, student_NV: Tensor, share: float, generator: torch.Generator,
           stored_teacher: int, stored_student: int) -> tuple[Tensor, Tensor, Tensor]:
    """-inf logits: the teacher's outside both stored lists (elsewhere its reverse KL is infinite), the student's
    anywhere but on the teacher's list (elsewhere the forward KL is), p_0's where the student's are."""
    vocab = teacher_NV.shape[1]
    listed_NV = torch.zeros_like(teacher_NV, dtype=torch.bool)
    listed_NV.scatter_(1, ranked(teacher_NV, stored_teacher), True)
    student_gone_NV = (torch.rand(teacher_NV.shape, generator=generator) < share) & ~listed_NV
    student_gone_NV[:, vocab // 2:] = False
    behaviour_NV = behaviour_NV.masked_fill(student_gone_NV, -torch.inf)
    listed_NV.scatter_(1, ranked(behaviour_NV, stored_student), True)
    teacher_gone_NV = (torch.rand(teacher_NV.shape, generator=generator) < share) & ~listed_NV
    return (teacher_NV.masked_fill(teacher_gone_NV, -torch.inf), behaviour_NV,
            student_NV.masked_fill(student_gone_NV, -torch.inf))


def nucleus_sample(logits_NV: Tensor, top_p: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """token_ids_N and the log of the density they were drawn from."""
    probs_NV = log_softmax(logits_NV).exp()
    order_NV = ranked(logits_NV, logits_NV.shape[1])
    sorted_NV = probs_NV.gather(1, order_NV)
    outside_NV = sorted_NV.cumsum(1) - sorted_NV >= top_p
    nucleus_NV = sorted_NV.masked_fill(outside_NV, 0.0)
    nucleus_NV = nucleus_NV / nucleus_NV.sum(1, keepdim=True)
    rank_N1 = torch.multinomial(nucleus_NV, 1, generator=generator)
    return order_NV.gather(1, rank_N1)[:, 0], nucleus_NV.gather(1, rank_N1)[:, 0].log()


def cache(states: States) -> TokenBatch:
    """What a scorer keeps of `states`, in exact float64."""
    teacher_NV, behaviour_NV = log_softmax(states.teacher_NV), log_softmax(states.behaviour_NV)
    teacher_ids_NK = ranked(states.teacher_NV, states.stored_teacher)
    student_ids_Nk = ranked(states.behaviour_NV, states.stored_student)

    def at_sampled(log_probs_NV):
        return log_probs_NV.gather(1, states.token_ids_N[:, None])[:, 0]

    return TokenBatch(
        token_ids_N=states.token_ids_N, teacher_log_prob_N=at_sampled(teacher_NV),
        student_log_prob_N=at_sampled(behaviour_NV), sampling_log_prob_N=states.sampling_log_prob_N,
        teacher_log_tail_N=log_outside(teacher_NV, teacher_ids_NK),
        student_log_tail_N=log_outside(behaviour_NV, teacher_ids_NK),
        teacher_topk_ids_NK=teacher_ids_NK, teacher_topk_log_probs_NK=teacher_NV.gather(1, teacher_ids_NK),
        student_topk_ids_Nk=student_ids_Nk, student_topk_log_probs_Nk=behaviour_NV.gather(1, student_ids_Nk),
        teacher_at_student_Nk=teacher_NV.gather(1, student_ids_Nk), weight_N=states.weight_N,
        rollout_N=states.rollout_N, position_N=states.position_N)


def log_outside(logits_NV: Tensor, ids_NS: Tensor) -> Tensor:
    """logsumexp over the ids that are not in a row's list; -inf, without a gradient, where there are none."""
    rows = []
    for logits_V, ids_S in zip(logits_NV, ids_NS):
        outside_V = torch.ones(len(logits_V), dtype=torch.bool)
        outside_V[ids_S] = False
        outside_V &= logits_V.detach() > -torch.inf
        rows.append(logits_V[outside_V].logsumexp(0) if outside_V.any() else logits_V.new_tensor(-torch.inf))
    return torch.stack(rows)


def student_logits(logits_NV: Tensor, ids_NS: Tensor) -> StudentLogits:
    """What the trainer would hand to an objective that asked for `ids_NS`."""
    return StudentLogits(logits_NV.gather(1, ids_NS), logits_NV.logsumexp(1), log_outside(logits_NV, ids_NS))
