"""Every Triton kernel of the support head against float64: run by test_support_triton.py in a process of its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.train.support import hybrid, kernels
from pipeline.train.support import index as support_index
from pipeline.train.support.head import student_logits, support_logits
from pipeline.train.support.index import SupportIndex
from pipeline.train.support.kernels import Tile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(50, 8, 5, 1), (60, 24, 3, 50), (300, 40, 6, 16), (400, 65, 2, 128), (30, 300, 3, 5)]
"""(vocabulary, width, positions, support)."""
TOLERANCES = {(torch.float64, torch.float64): 1e-12, (torch.float32, torch.float32): 1e-5,
              (torch.bfloat16, torch.float32): 1e-5, (torch.bfloat16, torch.bfloat16): 1e-5,
              (torch.float32, torch.bfloat16): 1e-5, (torch.float16, torch.float16): 1e-5}
"""Of sums, by the dtypes of hidden states and weight. Gradients are stored in the dtype of what they belong to."""
STORED = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8 if DEVICE == "cuda" else 2**-7,
          torch.float16: 2**-10}
"""The interpreter cuts float32 to bfloat16, where a GPU rounds."""
HEADS = [{}, {"bias": True}, {"scale": 0.25}, {"softcap": 3.0}, {"bias": True, "scale": 1.5, "softcap": 2.0}]


def problem(shape, *, repeated=False, dtypes=(torch.float32, torch.float32), seed=0):
    vocabulary, width, positions, support = shape
    torch.manual_seed(sum(shape) + seed)
    hotness = torch.arange(1, vocabulary + 1, dtype=torch.float64).reciprocal().expand(max(1, positions), -1)
    ids = hotness.multinomial(support, replacement=repeated) if support else torch.empty(len(hotness), 0).long()
    ids = ids[:positions]
    hidden, weight = torch.randn(positions, width).to(dtypes[0]), torch.randn(vocabulary, width).to(dtypes[1])
    grad = torch.randn(positions, support, dtype=torch.float64 if torch.float64 in dtypes else torch.float32)
    return tuple(tensor.to(DEVICE) for tensor in (hidden, weight, grad, ids))


def close(found, expected, tolerance):
    assert found.shape == expected.shape
    if expected.numel():
        assert (found.double() - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1e-3)


def check(hidden, weight, grad, ids, tolerance, tiles=(kernels.RARE_IDS, kernels.FREQUENT_IDS),
          rows=kernels.DOTS, bags=kernels.BAGS):
    """All three kernels against sums over every pair."""
    index = SupportIndex.build(ids)
    rows_NSD = weight.double()[ids]
    dots = kernels.dots(hidden, weight, index, rows)
    close(dots, (rows_NSD * hidden.double()[:, None]).sum(2), tolerance)
    found = kernels.hidden_gradient(hidden, weight, grad, index, bags)
    assert found.dtype == hidden.dtype
    close(found, (rows_NSD * grad.double()[:, :, None]).sum(1), max(tolerance, STORED[hidden.dtype]))
    pairs_PD = (grad.double()[:, :, None] * hidden.double()[:, None]).flatten(0, 1)
    expected = torch.ones_like(weight, dtype=torch.float64).index_add_(0, ids.flatten(), pairs_PD)
    buffers = [torch.ones_like(weight) for _ in range(2)]
    for buffer in buffers:
        kernels.add_weight_gradient(buffer, hidden, grad, index, tiles)
    close(buffers[0], expected, max(tolerance, STORED[weight.dtype]))
    assert torch.equal(*buffers), "the same input gives the same bits"


@pytest.mark.parametrize("repeated", [False, True], ids=["distinct", "repeated ids"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_are_those_of_every_pair(shape, repeated):
    check(*problem(shape, repeated=repeated), 1e-5)


@pytest.mark.parametrize("dtypes", TOLERANCES, ids=str)
def test_every_dtype_is_summed_in_float32_or_float64(dtypes):
    check(*problem((300, 40, 9, 16), dtypes=dtypes), TOLERANCES[dtypes])


@given(st.integers(0, 5), st.integers(1, 40), st.integers(0, 20), st.integers(1, 60), st.booleans(), st.integers(0, 9))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_ragged_sizes(positions, width, support, vocabulary, repeated, seed):
    support = support if repeated else min(support, vocabulary)
    check(*problem((vocabulary, width, positions, support), repeated=repeated, seed=seed), 1e-5)


@pytest.mark.parametrize("tile", [Tile(2, 16), Tile(16, 32), Tile(64, 64)], ids=str)
def test_every_tile_gives_the_same_sums(tile):
    check(*problem((60, 40, 5, 20), repeated=True), 1e-5, (tile, tile), tile, tile)


def test_ids_with_many_pairs_are_summed_by_the_tiles_of_frequent_ids():
    hidden, weight, grad, ids = problem((40, 24, 150, 3))
    ids[:, 0] = 7
    ids[:70, 1] = 9
    assert SupportIndex.build(ids).frequent_F.tolist() != []
    check(hidden, weight, grad, ids, 1e-5)


@pytest.mark.parametrize("frequent, repeated, dtypes", [
    (0, False, (torch.float32, torch.float32)), (3, True, (torch.float64, torch.float64)),
    (3, False, (torch.bfloat16, torch.float32)), (1000, True, (torch.float32, torch.float32))], ids=str)
def test_multiplying_the_frequent_ids_and_gathering_the_others_gives_the_same_sums(frequent, repeated, dtypes,
                                                                                   monkeypatch):
    monkeypatch.setattr(support_index, "FREQUENT", frequent)
    monkeypatch.setattr(hybrid, "CHUNK", 7)
    hidden, weight, grad, ids = problem((60, 40, 20, 6), repeated=repeated, dtypes=dtypes)
    index, tolerance = SupportIndex.build(ids, chunk=8), TOLERANCES[dtypes]
    assert (len(index.frequent.ids_F) > 0) == (frequent < 1000) and len(index.frequent.ids_F) <= len(index.ids_U)
    close(hybrid.dots(hidden, weight, index), kernels.dots(*(each.double() for each in (hidden, weight)),
                                                                         index), tolerance)
    found = hybrid.hidden_gradient(hidden, weight, grad, index)
    expected = kernels.hidden_gradient(hidden.double(), weight.double(), grad.double(), index)
    close(found, expected, max(tolerance, STORED[hidden.dtype]))
    buffers = torch.ones_like(weight), torch.ones_like(weight, dtype=torch.float64)
    hybrid.add_weight_gradient(buffers[0], hidden, grad, index)
    kernels.add_weight_gradient(buffers[1], hidden.double(), grad.double(), index)
    close(*buffers, max(tolerance, STORED[weight.dtype]))


def test_rows_that_are_not_contiguous_are_read_where_they_lie():
    hidden, weight, grad, ids = problem((60, 40, 5, 20))
    check(hidden[:, :24], weight[:, :24], grad, ids, 1e-5)
    check(hidden.t().contiguous().t(), weight[:, ::2].contiguous().repeat_interleave(2, 1), grad, ids, 1e-5)


def test_an_infinite_logit_of_one_position_stays_in_its_row():
    hidden, weight, grad, ids = problem((60, 24, 6, 8))
    hidden[2] = torch.inf
    index = SupportIndex.build(ids)
    found = kernels.dots(hidden, weight, index)
    others = torch.arange(6) != 2
    assert torch.isfinite(found[others]).all() and not torch.isfinite(found[2]).any()


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "returned"])
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_the_head_over_the_kernels_is_the_dense_head(head, in_place):
    hidden, weight, grad, ids = problem((60, 24, 7, 6), repeated=True, dtypes=(torch.float64, torch.float64))
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    options = {"scale": head.get("scale", 1.0), "softcap": head.get("softcap"), "bias": None}
    if head.get("bias"):
        options["bias"] = torch.randn(60, dtype=torch.float64, device=DEVICE).requires_grad_()
        leaves.append(options["bias"])
    raw = torch.nn.functional.linear(hidden, weight, options["bias"]) * options["scale"]
    dense = raw if not options["softcap"] else options["softcap"] * torch.tanh(raw / options["softcap"])
    expected = torch.autograd.grad((dense.gather(1, ids) * grad).sum() + dense.logsumexp(1).sum(), leaves)
    index = SupportIndex.build(ids, chunk=3)
    student = student_logits(hidden, weight, index, log_normaliser=True, in_place=in_place, path=kernels,
                             **options)
    close(student.logits_NS, dense.gather(1, ids).detach(), 1e-12)
    ((student.logits_NS * grad).sum() + student.lse_N.sum()).backward()
    for leaf, reference in zip(leaves, expected, strict=True):
        close(leaf.grad, reference, 1e-12)


def test_masked_positions_that_were_dropped_before_the_head_get_no_gradient():
    hidden, weight, grad, ids = problem((60, 24, 7, 6))
    hidden.requires_grad_(), weight.requires_grad_()
    kept = torch.tensor([True, False, True, True, False, False, True], device=DEVICE)
    support_logits(hidden[kept], weight, ids[kept], path=kernels).backward(grad[kept])
    found = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    torch.nn.functional.linear(hidden, weight).gather(1, ids).backward(grad * kept[:, None])
    assert not found[0][~kept].any()
    for a, b in zip(found, (hidden.grad, weight.grad), strict=True):
        close(a, b.double(), 1e-5)
