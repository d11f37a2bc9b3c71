"""The support head and the chunked normaliser against plain dense heads under autograd."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config.model import SampledToken, TailBucketTopK, TeacherTopKLsm
from pipeline.objectives import build
from pipeline.train.in_place import embed
from pipeline.train.log_normaliser import log_normaliser
from pipeline.train.support.head import student_logits, support_logits
from pipeline.train.support.index import SupportIndex
from tests.objectives.dense_reference import cached, gathered, states

torch.set_num_threads(1)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHAPES = [(50, 8, 6, 1), (50, 8, 6, 50), (700, 24, 40, 16), (5000, 16, 33, 128)]
"""(vocabulary, width, positions, support)."""
HEADS = [{}, {"bias": True}, {"scale": 0.25}, {"softcap": 3.0}, {"bias": True, "scale": 1.5, "softcap": 2.0}]


def problem(shape, *, bias=False, dtype=torch.float64, device="cpu", repeated=False, scale=1.0, softcap=None):
    """hidden, weight and bias that want gradients, and ids: distinct in each row unless `repeated`; a few are hot."""
    vocabulary, width, positions, support = shape
    torch.manual_seed(sum(shape))
    leaf = lambda *size: torch.randn(*size, dtype=torch.float64).to(device, dtype).requires_grad_()
    hotness = torch.arange(1, vocabulary + 1, dtype=torch.float64).reciprocal().expand(positions, -1)
    ids = hotness.multinomial(support, replacement=repeated).to(device)
    options = {"bias": leaf(vocabulary) if bias else None, "scale": scale, "softcap": softcap}
    return leaf(positions, width), leaf(vocabulary, width), ids, options


def dense_logits(hidden, weight, options):
    raw = F.linear(hidden, weight, options["bias"]) * options["scale"]
    return raw if options["softcap"] is None else options["softcap"] * torch.tanh(raw / options["softcap"])


def gradients(result, hidden, weight, options):
    """Backward from a fixed random cotangent; gradients of hidden, weight and bias, which are then cleared."""
    cotangent = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result.backward(cotangent.to(result))
    leaves = [leaf for leaf in (hidden, weight, options["bias"]) if leaf is not None]
    found = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return found


def close(found, expected, tolerance):
    """Within `tolerance` of the largest entry."""
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * b.abs().max() + 1e-30


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("repeated", [False, True], ids=["distinct", "repeated ids"])
@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_and_gradients_are_those_of_the_dense_head(shape, head, repeated, device):
    hidden, weight, ids, options = problem(shape, repeated=repeated, device=device, **head)
    dense = dense_logits(hidden, weight, options).gather(1, ids)
    sparse = support_logits(hidden, weight, SupportIndex.build(ids), **options)
    close([sparse.detach()], [dense.detach()], 1e-12)
    expected = gradients(dense, hidden, weight, options)
    close(gradients(sparse, hidden, weight, options), expected, 1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("exclude", [False, True], ids=["whole", "outside"])
@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_normaliser_and_its_gradients_are_those_of_the_dense_head(shape, head, exclude, device):
    vocabulary = shape[0] - 3
    hidden, weight, ids, options = problem(shape, repeated=True, device=device, **head)
    ids = ids.clamp_max(vocabulary - 1)
    logits = dense_logits(hidden, weight, options)[:, :vocabulary]
    left_out = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, exclude)
    dense = logits.masked_fill(left_out, -torch.inf).logsumexp(1)
    chunked = log_normaliser(hidden, weight, vocab=vocabulary, exclude=ids if exclude else None, **options)
    close([chunked.detach()], [dense.detach()], 1e-12)
    expected = gradients(dense, hidden, weight, options)
    close(gradients(chunked, hidden, weight, options), expected, 1e-12)


def test_a_support_that_is_the_whole_vocabulary_leaves_nothing_outside_and_no_gradient():
    hidden, weight, _, options = problem((20, 4, 3, 1))
    outside = log_normaliser(hidden, weight, exclude=torch.arange(20).repeat(3, 1))
    assert torch.all(outside == -torch.inf)
    assert not any(grad.any() for grad in gradients(outside, hidden, weight, options))


def test_the_two_sums_of_student_logits_agree_when_a_row_holds_an_id_twice():
    hidden, weight, _, options = problem((60, 8, 4, 1))
    ids = torch.tensor([[3, 3, 5], [1, 2, 1], [7, 8, 9], [4, 4, 4]])
    student = student_logits(hidden, weight, SupportIndex.build(ids), log_normaliser=True)
    logits = dense_logits(hidden, weight, options)
    close([student.lse_N], [logits.logsumexp(1)], 1e-12)
    outside = logits.scatter(1, ids, -torch.inf)
    close([student.log_outside_N], [outside.logsumexp(1)], 1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", [TeacherTopKLsm(), TailBucketTopK(), SampledToken()], ids=lambda config: config.type)
def test_an_objective_through_the_head_has_the_dense_gradients_of_hidden_and_weight(config, device):
    objective = build(config)
    teacher, before, _ = states(24, 900)
    batch = cached(teacher, before, k=12).to(device)
    hidden, weight, _, options = problem((900, 16, 24, 1), device=device)
    dense = objective.loss(batch, gathered(F.linear(hidden, weight), objective.support(batch), objective))
    index = SupportIndex.build(objective.support(batch))
    student = student_logits(hidden, weight, index, log_normaliser=objective.needs_log_normaliser)
    sparse = objective.loss(batch, student)
    close([sparse.detach()], [dense.detach()], 1e-10)
    expected = gradients(dense, hidden, weight, options)
    close(gradients(sparse, hidden, weight, options), expected, 1e-10)


def test_at_the_size_of_a_real_head_float32_gradients_are_within_1e5_of_dense():
    torch.manual_seed(0)
    hidden = torch.randn(24, 896).requires_grad_()
    weight = (torch.randn(151936, 896) / 30).requires_grad_()
    ids = (torch.rand(24, 64).pow(-1.0) * 8).long().clamp_max(151935)
    index, teacher = SupportIndex.build(ids), torch.randn(24, 64).log_softmax(1)
    loss = lambda logits: (logits.softmax(1) * (logits.log_softmax(1) - teacher)).sum(1).mean()
    loss(support_logits(hidden, weight, index)).backward()
    sparse = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    loss(F.linear(hidden, weight).gather(1, ids)).backward()
    close(sparse, (hidden.grad, weight.grad), 1e-5)


def test_a_tied_embedding_and_the_head_add_up_in_one_gradient_buffer():
    hidden, weight, ids, _ = problem((50, 8, 6, 5))
    tokens = torch.tensor([4, 4, 0, 1, 9, 30])

    def gradient(embedding, head):
        weight.grad = None
        for _ in range(2):
            states_ND = torch.tanh(embedding(tokens, weight)) + hidden.detach()
            head(states_ND).square().sum().backward()
        return weight.grad

    dense = gradient(F.embedding, lambda h: F.linear(h, weight).gather(1, ids))
    sparse = lambda h: support_logits(h, weight, SupportIndex.build(ids))
    close([gradient(F.embedding, sparse)], [dense], 1e-12)
    close([gradient(embed, sparse)], [dense], 1e-12)
    close([gradient(embed, lambda h: F.linear(h, weight).gather(1, ids))], [dense], 1e-12)


def test_gradients_go_into_the_buffer_that_is_there_and_accumulate():
    hidden, weight, ids, _ = problem((50, 8, 6, 5), dtype=torch.float32)
    index, buffer = SupportIndex.build(ids), torch.zeros_like(weight)
    weight.grad = buffer
    support_logits(hidden, weight, index).sum().backward()
    once = buffer.clone()
    support_logits(hidden, weight, index).sum().backward()
    assert weight.grad is buffer
    torch.testing.assert_close(buffer, 2 * once)


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that an operation makes, the buffers in `known` not counted."""

    def __init__(self, known):
        super().__init__()
        self.known, self.largest = {tensor.untyped_storage().data_ptr() for tensor in known}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, torch.Tensor) and made.layout == torch.strided:
                if made.untyped_storage().data_ptr() not in self.known:
                    self.largest = max(self.largest, made.numel())
        return result


def test_no_tensor_of_the_weights_size_or_of_all_logits_is_ever_made():
    hidden, weight, ids, _ = problem((20000, 64, 200, 16), dtype=torch.float32)
    weight.grad = torch.zeros_like(weight)
    with Largest([hidden, weight, weight.grad]) as watch:
        student = student_logits(hidden, weight, SupportIndex.build(ids), log_normaliser=True)
        (student.logits_NS.sum() + student.lse_N.sum()).backward()
    assert watch.largest <= 2**19 < min(weight.numel(), 200 * 20000)


def test_a_frozen_head_or_trunk_gets_no_gradient():
    for frozen in (0, 1):
        leaves = problem((50, 8, 6, 5))
        leaves[frozen].requires_grad_(False)
        student = student_logits(*leaves[:2], SupportIndex.build(leaves[2]), log_normaliser=True)
        (student.logits_NS.sum() + student.lse_N.sum()).backward()
        assert leaves[frozen].grad is None and leaves[1 - frozen].grad.any()


@pytest.mark.parametrize("hidden_dtype, weight_dtype",
                         itertools.product([torch.float32, torch.bfloat16], repeat=2), ids=str)
def test_half_precision_inputs_are_computed_in_float32_and_get_gradients_of_their_own_dtype(hidden_dtype, weight_dtype):
    hidden, weight, ids, options = problem((700, 24, 40, 16))
    hidden = hidden.detach().to(hidden_dtype).requires_grad_()
    weight = weight.detach().to(weight_dtype).requires_grad_()
    exact = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight)]
    student = student_logits(hidden, weight, SupportIndex.build(ids), log_normaliser=True)
    assert student.logits_NS.dtype == student.lse_N.dtype == torch.float32
    dense = F.linear(*exact)
    close([student.logits_NS, student.lse_N], [dense.gather(1, ids), dense.logsumexp(1)], 1e-6)
    (student.logits_NS.sum() + student.lse_N.sum()).backward()
    (dense.gather(1, ids).sum() + dense.logsumexp(1).sum()).backward()
    assert (hidden.grad.dtype, weight.grad.dtype) == (hidden_dtype, weight_dtype)
    for leaf, reference in zip((hidden, weight), exact, strict=True):
        close([leaf.grad], [reference.grad], 1e-5 if leaf.dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_gradients_that_are_returned_to_autograd_are_those_that_are_added_in_place(head):
    hidden, weight, ids, options = problem((700, 24, 40, 16), repeated=True, **head)
    index = SupportIndex.build(ids)

    def found(in_place):
        student = student_logits(hidden, weight, index, log_normaliser=True, vocab=690, in_place=in_place, **options)
        both = torch.cat([student.logits_NS, student.lse_N[:, None], student.log_outside_N[:, None]], dim=1)
        return gradients(both, hidden, weight, options)

    close(found(in_place=False), found(in_place=True), 1e-12)


def test_a_weight_that_is_no_leaf_gets_its_gradient_through_autograd_and_its_hooks_see_it():
    hidden, weight, ids, _ = problem((50, 8, 6, 5))
    seen = []
    weight.register_hook(seen.append)
    doubled = weight * 2
    student = student_logits(hidden, doubled, SupportIndex.build(ids), log_normaliser=True, in_place=False)
    (student.logits_NS.sum() + student.lse_N.sum()).backward()
    found = weight.grad
    weight.grad = None
    logits = F.linear(hidden, weight * 2)
    (logits.gather(1, ids).sum() + logits.logsumexp(1).sum()).backward()
    close([found, seen[0]], [weight.grad, weight.grad], 1e-12)


@pytest.mark.parametrize("config", [TeacherTopKLsm(), SampledToken()], ids=lambda config: config.type)
def test_no_position_at_all_gives_zero_gradients(config):
    objective = build(config)
    teacher, before, _ = states(3, 50)
    batch = cached(teacher, before, k=4).select(torch.zeros(3, dtype=torch.bool))
    hidden, weight, _, _ = problem((50, 8, 3, 1))
    student = student_logits(hidden[:0], weight, SupportIndex.build(objective.support(batch)),
                             log_normaliser=objective.needs_log_normaliser)
    objective.loss(batch, student).sum().backward()
    assert not hidden.grad.any()


def test_results_do_not_depend_on_the_number_of_threads():
    hidden, weight, ids, options = problem((5000, 64, 300, 32), dtype=torch.float32)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        student = student_logits(hidden, weight, SupportIndex.build(ids), log_normaliser=False)
        found.append([student.logits_NS.detach(), *gradients(student.logits_NS, hidden, weight, options)])
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_repeat_their_few_ids_are_no_more_entries_than_a_sparse_matrix_holds(dtype):
    for positions, vocabulary in ((1, 50), (300, 50), (4, 5)):
        hidden, weight = torch.randn(positions, 8).to(dtype), torch.randn(vocabulary, 8).to(dtype)
        ids = torch.randint(3, (positions, 24))
        close([support_logits(hidden, weight, ids)], [F.linear(hidden.double(), weight.double()).gather(1, ids)], 1e-5)


def test_an_index_knows_distinct_ids_their_pairs_and_repetitions():
    index = SupportIndex.build(torch.tensor([[5, 2, 5], [2, 9, 0]], dtype=torch.int32))
    assert index.ids_U.tolist() == [0, 2, 5, 9]
    assert index.offsets_U.tolist() == [0, 1, 3, 5] and index.bounds == (0, 6)
    assert index.rows_P.tolist() == [1, 0, 1, 0, 0, 1]
    assert index.counts_U.tolist() == [1, 2, 2, 1] and index.repeated and not index.chunks
    assert index.first_NS.tolist() == [[True, True, False], [True, True, True]]


def test_an_index_in_chunks_holds_an_index_of_every_few_positions():
    ids = torch.tensor([[5, 2], [2, 9], [9, 9], [1, 2], [3, 4]])
    index = SupportIndex.build(ids, chunk=2).to("cpu", non_blocking=True)
    assert [chunk.ids_NS.tolist() for chunk in index.chunks] == [ids[:2].tolist(), ids[2:4].tolist(), ids[4:].tolist()]
    assert [chunk.repeated for chunk in index.chunks] == [False, True, False] and index.repeated
    assert index.parts() is index.chunks and len(SupportIndex.build(ids).parts()) == 1
    assert SupportIndex.build(ids[:0], chunk=2).parts() == ()


def test_ids_with_many_pairs_are_known_by_their_place():
    ids = torch.arange(130)[:, None] % 65 * 3
    assert SupportIndex.build(ids).frequent_F.tolist() == []
    assert SupportIndex.build(torch.cat([ids, ids.clamp_max(3)])).frequent_F.tolist() == [1]


def test_of_very_many_frequent_ids_only_the_commonest_are_treated_as_such():
    ids = torch.cat([torch.arange(1100).repeat(65), torch.arange(40)])[:, None]
    index = SupportIndex.build(ids)
    assert index.limit == 65 and index.frequent_F.tolist() == list(range(40))


def test_a_weight_that_is_no_leaf_is_refused():
    hidden, weight, ids, _ = problem((50, 8, 6, 5))
    with pytest.raises(AssertionError, match="pass the parameter itself"):
        support_logits(hidden, weight * 1, ids).sum().backward()
