"""The dense products over distinct ids, which a GPU may take: on the CPU against whole logits in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.train.in_place import summed
from pipeline.train.support import gemm
from pipeline.train.support import index as support_index
from pipeline.train.support.index import SupportIndex
from pipeline.train.support.products import operand_dtype, product

torch.set_num_threads(1)
SHAPES = [(50, 8, 6, 1), (50, 8, 6, 50), (700, 24, 40, 16), (3000, 9, 33, 128)]
"""(vocabulary, width, positions, support)."""


@pytest.fixture
def small_blocks(monkeypatch):
    """Chunks of 7 positions and products of 32 distinct ids, so that every shape has several and ragged ones."""
    monkeypatch.setattr(support_index, "BLOCK", 16)
    monkeypatch.setattr(gemm, "BLOCK", 16)
    monkeypatch.setattr(gemm, "BLOCKS", 2)


def problem(shape, repeated, dtype):
    vocabulary, width, positions, support = shape
    torch.manual_seed(sum(shape))
    hotness = torch.arange(1, vocabulary + 1, dtype=torch.float64).reciprocal().expand(positions, -1)
    ids = hotness.multinomial(support, replacement=repeated)
    numbers = [torch.randn(*size, dtype=torch.float64).to(dtype) for size in
               ((positions, width), (vocabulary, width), (positions, support))]
    return *numbers, ids


def close(found, expected, tolerance):
    assert found.shape == expected.shape
    assert (found.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize("chunk", [None, 7, 1000])
@pytest.mark.parametrize("repeated", [False, True], ids=["distinct", "repeated ids"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_three_products_are_those_of_the_dense_head(small_blocks, shape, repeated, chunk, dtype, tolerance):
    hidden, weight, grad, ids = problem(shape, repeated, dtype)
    index = SupportIndex.build(ids, chunk)
    exact_hidden, exact_weight = (each.double().requires_grad_() for each in (hidden, weight))
    dense = F.linear(exact_hidden, exact_weight).gather(1, ids)
    dense.backward(grad.double())
    close(gemm.dots(hidden, weight, index), dense.detach(), tolerance)
    close(gemm.hidden_gradient(hidden, weight, grad, index), exact_hidden.grad, tolerance)
    buffer = torch.ones_like(weight)
    gemm.add_weight_gradient(buffer, hidden, grad, index)
    close(buffer, 1 + exact_weight.grad, tolerance)


def test_mixed_and_half_dtypes_are_summed_in_float32_and_gradients_keep_the_dtype_of_what_they_belong_to():
    hidden, weight, grad, ids = problem((700, 24, 40, 16), False, torch.float32)
    index = SupportIndex.build(ids, 16)
    for hidden_dtype, weight_dtype in ((torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        half, table = hidden.to(hidden_dtype), weight.to(weight_dtype)
        assert gemm.dots(half, table, index).dtype == torch.float32
        close(gemm.dots(half, table, index), F.linear(half.double(), table.double()).gather(1, ids), 1e-6)
        assert gemm.hidden_gradient(half, table, grad, index).dtype == hidden_dtype


def test_no_position_and_no_id_are_no_work():
    for ids in (torch.empty(0, 4, dtype=torch.long), torch.empty(3, 0, dtype=torch.long)):
        hidden, weight, index = torch.randn(len(ids), 8), torch.randn(20, 8), SupportIndex.build(ids, 2)
        assert gemm.dots(hidden, weight, index).shape == ids.shape
        assert not gemm.hidden_gradient(hidden, weight, torch.zeros(ids.shape), index).any()
        gemm.add_weight_gradient(weight.clone(), hidden, torch.zeros(ids.shape), index)


def test_bfloat16_is_multiplied_as_such_on_a_gpu_and_summed_in_float32():
    with FakeTensorMode():  # shapes, dtypes and devices of a GPU, without one
        hidden, weight = (torch.empty(64, 32, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        assert operand_dtype(hidden, weight) == torch.bfloat16
        assert operand_dtype(hidden, weight.float()) == operand_dtype(hidden.half(), weight.half()) == torch.float32
        assert operand_dtype(hidden, weight.double()) == torch.float64
        logits = product(hidden, weight.t())
        assert (logits.dtype, logits.device.type, logits.shape) == (torch.float32, "cuda", (64, 64))


def test_rows_of_one_id_are_summed_before_they_are_added_to_a_gradient():
    ids, rows = torch.tensor([5, 2, 5, 9, 2, 5]), torch.randn(6, 4, dtype=torch.float64)
    found_ids, found = summed(ids, rows)
    assert found_ids.tolist() == [2, 5, 9]
    close(found, torch.zeros(10, 4, dtype=torch.float64).index_add_(0, ids, rows)[[2, 5, 9]], 1e-12)
