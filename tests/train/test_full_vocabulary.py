"""The whole-vocabulary divergence in chunks, against full logits under autograd in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.models import Head
from pipeline.objectives.divergence import forward_kl, jsd, reverse_kl, skewed
from pipeline.objectives.support import LEAST_LOG_Q
from pipeline.train import log_normaliser
from pipeline.train.full_vocabulary import full_vocabulary_loss
from pipeline.train.in_place import embed

torch.set_num_threads(1)
HEADS = {"plain": {}, "bias": {"bias": True}, "scale": {"scale": 0.25}, "softcap": {"softcap": 2.0},
         "all": {"bias": True, "scale": 1.5, "softcap": 3.0}}
VOCABULARY, WIDTH, TEACHER_WIDTH, POSITIONS = 300, 8, 12, 7


DIVERGENCES = {"reverse_kl": reverse_kl, "forward_kl": forward_kl, "jsd": jsd(0.5), "skewed": skewed(0.1)}


def kl(p, q):
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum(1)


DENSE = {"reverse_kl": kl, "forward_kl": lambda p, q: kl(q, p),
         "jsd": lambda p, q: kl(p, (p + q) / 2) / 2 + kl(q, (p + q) / 2) / 2,
         "skewed": lambda p, q: kl(p, 0.1 * p + 0.9 * q)}
"""Once more, from whole vectors of probabilities."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Three chunks, the last one short."""
    monkeypatch.setattr(log_normaliser, "CHUNK_IDS", {"cpu": (128, 128)})


def side(seed, width, *, vocabulary=VOCABULARY, dtype=torch.float64, bias=False, scale=1.0, softcap=None):
    """(hidden, head) of one model; both want gradients."""
    generator = torch.Generator().manual_seed(seed)
    leaf = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return leaf(POSITIONS, width), Head(leaf(vocabulary, width), leaf(vocabulary) if bias else None, scale, softcap)


def dense_probs(hidden, head, vocabulary):
    raw = F.linear(hidden, head.weight_VD, head.bias) * head.scale
    return (raw if head.softcap is None else head.softcap * torch.tanh(raw / head.softcap))[:, :vocabulary].softmax(1)


def gradients(loss_N, leaves):
    """Backward from a fixed random cotangent; the leaves' gradients, which are then cleared."""
    cotangent = torch.randn(loss_N.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss_N.backward(cotangent.to(loss_N))
    found = [leaf.grad for leaf in leaves if leaf is not None]
    for leaf in leaves:
        if leaf is not None:
            leaf.grad = None
    return found


def close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_value_and_gradients_are_those_of_full_logits(name, options):
    hidden, head = side(0, WIDTH, **options)
    teacher_hidden, teacher_head = side(1, TEACHER_WIDTH, vocabulary=VOCABULARY + 20, **options)
    ours = full_vocabulary_loss(hidden, head, teacher_hidden, teacher_head, DIVERGENCES[name], vocab=VOCABULARY - 5)
    expected = DENSE[name](*(dense_probs(*each, VOCABULARY - 5)
                             for each in ((hidden, head), (teacher_hidden.detach(), teacher_head))))
    assert (ours - expected).abs().max() <= 1e-10 and expected.min() > 0.05
    leaves = [hidden, head.weight_VD, head.bias]
    close(gradients(ours, leaves), gradients(expected, leaves), 1e-10)
    assert teacher_hidden.grad is None and ours.requires_grad


def test_the_chunks_pass_gradcheck():
    hidden, head = side(0, 4, vocabulary=150, softcap=2.0)
    teacher = side(1, 4, vocabulary=150)
    function = lambda hidden: full_vocabulary_loss(hidden, head, *teacher, jsd(0.5))
    assert torch.autograd.gradcheck(function, hidden)


def test_float32_is_as_near_to_float64_as_full_logits_are():
    found = {}
    for dtype in (torch.float32, torch.float64):
        (hidden, head), teacher = (side(seed, WIDTH, dtype=torch.float32) for seed in (0, 1))
        hidden, weight, *teacher = (each.detach().to(dtype).requires_grad_() for each in (
            hidden, head.weight_VD, teacher[0], teacher[1].weight_VD))
        loss = full_vocabulary_loss(hidden, Head(weight), teacher[0], Head(teacher[1]), reverse_kl)
        found[dtype] = [loss.detach(), *gradients(loss, [hidden, weight])]
    close(found[torch.float32], found[torch.float64], 2e-6)


def test_half_precision_inputs_are_computed_in_float32():
    exact = [leaf.detach().bfloat16() for leaf in (side(0, WIDTH)[0], side(0, WIDTH)[1].weight_VD)]
    losses = []
    for dtype in (torch.bfloat16, torch.float32):
        hidden, weight = (each.to(dtype).requires_grad_() for each in exact)
        teacher_hidden, teacher_head = side(1, TEACHER_WIDTH, dtype=torch.bfloat16)
        losses.append(full_vocabulary_loss(hidden, Head(weight), teacher_hidden, teacher_head, reverse_kl))
    assert losses[0].dtype == torch.float32 and torch.equal(*losses)


def test_the_same_teacher_costs_nothing_and_moves_nothing():
    hidden, head = side(0, WIDTH, softcap=3.0)
    loss = full_vocabulary_loss(hidden, head, hidden, head, reverse_kl)
    assert loss.abs().max() <= 1e-14
    assert all(grad.abs().max() <= 1e-14 for grad in gradients(loss, [hidden, head.weight_VD]))


def test_a_stopped_gradient_inside_the_log_ratio_drops_its_term():
    """d/dz sum p sg(log p - log q): the reverse KL's, since sum p d log p = 0; the forward value is the same too."""
    found = []
    for stop_gradient in (False, True):
        hidden, head = side(0, WIDTH)
        loss = full_vocabulary_loss(hidden, head, *side(1, TEACHER_WIDTH), reverse_kl, stop_gradient=stop_gradient)
        found.append([loss.detach(), *gradients(loss, [hidden, head.weight_VD])])
    close(found[0], found[1], 1e-12)


def test_a_tied_embedding_gets_both_gradients():
    teacher_hidden, teacher_head = side(1, TEACHER_WIDTH)
    ids = torch.arange(POSITIONS) % 3
    grads = []
    for ours in (True, False):
        weight = side(0, WIDTH)[1].weight_VD
        hidden = (embed(ids, weight) if ours else F.embedding(ids, weight)).tanh()
        both = (hidden, Head(weight), teacher_hidden, teacher_head)
        loss = full_vocabulary_loss(*both, reverse_kl) if ours else kl(dense_probs(*both[:2], VOCABULARY),
                                                                       dense_probs(*both[2:], VOCABULARY))
        grads += gradients(loss, [weight])
    close(grads[:1], grads[1:], 1e-10)


def test_gradients_add_up_over_calls():
    hidden, head = side(0, WIDTH)
    teacher = side(1, TEACHER_WIDTH)
    for _ in range(2):
        full_vocabulary_loss(hidden, head, *teacher, reverse_kl).sum().backward()
    twice, head.weight_VD.grad = head.weight_VD.grad, None
    full_vocabulary_loss(hidden, head, *teacher, reverse_kl).sum().backward()
    close([twice], [2 * head.weight_VD.grad], 1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_ids_that_are_impossible_for_either_side_leave_everything_finite(name):
    hidden, head = side(0, WIDTH, bias=True)
    teacher_hidden, teacher_head = side(1, TEACHER_WIDTH, bias=True)
    with torch.no_grad():
        head.bias[[0, 1]] = -torch.inf
        teacher_head.bias[[1, 2, 200]] = -torch.inf
    loss = full_vocabulary_loss(hidden, head, teacher_hidden, teacher_head, DIVERGENCES[name])
    found = gradients(loss, [hidden, head.weight_VD, head.bias])
    assert loss.isfinite().all() and all(grad.isfinite().all() for grad in found)
    assert not found[1][:2].any() and not found[2][:2].any()


def test_mass_where_the_teacher_has_none_costs_what_it_costs_on_a_support():
    hidden, head = side(0, WIDTH)
    teacher_hidden, teacher_head = side(1, TEACHER_WIDTH, bias=True)
    with torch.no_grad():
        teacher_head.bias[7] = -torch.inf
    p, q = (dense_probs(*each, VOCABULARY) for each in ((hidden, head), (teacher_hidden, teacher_head)))
    log_q = q.log().clamp_min(LEAST_LOG_Q)
    ours = full_vocabulary_loss(hidden, head, teacher_hidden, teacher_head, reverse_kl)
    assert (ours - (p * (p.log() - log_q)).sum(1)).abs().max() <= 1e-10


def test_no_position_makes_no_loss_and_a_frozen_head_gets_no_gradient():
    hidden, head = side(0, WIDTH)
    teacher_hidden, teacher_head = side(1, TEACHER_WIDTH)
    assert full_vocabulary_loss(hidden[:0], head, teacher_hidden[:0], teacher_head, reverse_kl).shape == (0,)
    head.weight_VD.requires_grad_(False)
    full_vocabulary_loss(hidden, head, teacher_hidden, teacher_head, reverse_kl).sum().backward()
    assert head.weight_VD.grad is None and hidden.grad.abs().max() > 0


def test_no_tensor_of_all_positions_by_the_vocabulary_is_ever_made():
    largest = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            largest.extend(each.numel() for each in (result if isinstance(result, tuple) else (result,))
                           if isinstance(each, torch.Tensor))
            return result

    hidden, head = side(0, WIDTH, vocabulary=3000)
    hidden = hidden.repeat(50, 1)
    teacher_hidden, teacher_head = side(1, TEACHER_WIDTH, vocabulary=3000)
    with Watch():
        full_vocabulary_loss(hidden, head, teacher_hidden.repeat(50, 1), teacher_head, jsd(0.5)).sum().backward()
    assert max(largest) <= max(head.weight_VD.numel(), 50 * POSITIONS * 128)


def test_a_head_with_fewer_rows_than_ids_is_refused():
    with pytest.raises(AssertionError, match="fewer rows"):
        full_vocabulary_loss(*side(0, WIDTH), *side(1, TEACHER_WIDTH, vocabulary=VOCABULARY - 1), reverse_kl)
