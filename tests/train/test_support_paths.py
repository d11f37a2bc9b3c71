"""Which path of the support head runs, and what the rule says of known shapes."""

import os

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.train.support import csr, gemm, paths
from pipeline.train.support.index import SupportIndex
from pipeline.train.support.paths import Problem, Rates, path_of, seconds


def problem(distinct_of_a_chunk: int, *, operands="bfloat16", support=64, bytes=2, frequent=0) -> Problem:
    """8192 positions in 8 chunks at width 3584."""
    return Problem(pairs=8192 * support, width=3584, distinct=4 * distinct_of_a_chunk,
                   chunk_products=8192 * distinct_of_a_chunk, chunk_distinct=8 * distinct_of_a_chunk,
                   frequent_pairs=4096 * support if frequent else 0, frequent_products=8192 * frequent,
                   hidden_bytes=bytes, weight_bytes=bytes, operands=operands)


def test_a_cpu_takes_sparse_matrices_whatever_the_sizes():
    for positions in (1, 3000):
        hidden, weight = torch.randn(positions, 8), torch.randn(20, 8)
        assert path_of(hidden, weight, SupportIndex.build(torch.zeros(positions, 2).long())) is csr


def test_a_gpu_without_triton_takes_dense_products(monkeypatch):
    monkeypatch.setattr(paths, "triton_runs", lambda: False)
    index = SupportIndex.build(torch.arange(60).view(6, 10))
    with FakeTensorMode():
        hidden, weight = torch.empty(6, 8, device="cuda"), torch.empty(60, 8, device="cuda")
        assert path_of(hidden, weight, index) is gemm


def test_few_distinct_ids_are_multiplied_and_many_are_gathered():
    few, many = seconds(problem(2000)), seconds(problem(22_659))
    assert few["gemm"] < few["fused"] and many["fused"] < many["gemm"]
    exact = seconds(problem(2000, operands="float32", bytes=4))
    assert exact["fused"] < exact["gemm"], "float32 products have no tensor cores"


def test_frequent_ids_are_multiplied_where_that_is_cheap_and_only_where_they_are_known():
    assert "hybrid" not in seconds(problem(22_659))
    half = seconds(problem(22_659, frequent=780))
    assert min(half, key=half.get) == "hybrid"
    exact = seconds(problem(22_659, frequent=7800, operands="float32", bytes=4))
    assert min(exact, key=exact.get) == "fused"
    by_kind = {kind: seconds(problem(2000, operands=kind, bytes=4))["gemm"] for kind in ("float32", "tf32")}
    assert by_kind["tf32"] < by_kind["float32"]


def test_a_chunked_index_knows_the_pairs_of_frequent_ids():
    ids = torch.arange(140)[:, None] % 70 + torch.tensor([[0, 1000]])
    ids[:, 1] = torch.arange(140) % 2 + 7
    index = SupportIndex.build(ids, chunk=64)
    assert SupportIndex.build(ids).frequent is None
    assert index.frequent.ids_F.tolist() == [7, 8] == index.to("cpu").frequent.ids_F.tolist()
    assert torch.equal(ids.flatten()[index.frequent.pairs_Q], index.frequent.ids_F[index.frequent.columns_Q])
    assert len(index.frequent.pairs_Q) == 144
    known = Problem.of(torch.empty(140, 8), torch.empty(2000, 8), index)
    assert (known.frequent_pairs, known.frequent_products, known.operands) == (144, 280, "float32")


def test_the_cost_is_counted_per_chunk_and_falls_with_the_rates():
    ids = torch.tensor([[1, 2], [1, 2], [3, 4], [3, 4]])
    hidden, weight = torch.empty(4, 8), torch.empty(5, 8)
    whole, halves = (Problem.of(hidden, weight, SupportIndex.build(ids, chunk)) for chunk in (None, 2))
    assert (whole.chunk_products, whole.chunk_distinct) == (16, 4)
    assert (halves.chunk_products, halves.chunk_distinct) == (8, 4)
    slow = Rates(gathered=1e9, streamed=1e9, products={"float32": 1e9})
    assert all(seconds(halves, slow)[path] > seconds(halves)[path] for path in ("gemm", "fused"))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs kernels on a CPU")
def test_where_triton_cannot_launch_a_kernel_a_warning_says_so_once_and_products_are_taken():
    pytest.importorskip("triton")
    paths.launches.cache_clear()
    with pytest.warns(UserWarning, match="Triton cannot run a kernel here, so the support head takes dense products"):
        assert not paths.launches(torch.device("cpu"))  # whose memory no kernel reads
    assert not paths.launches(torch.device("cpu"))
    paths.launches.cache_clear()


def test_measured_rates_are_found_by_a_word_of_the_devices_name(monkeypatch):
    measured = Rates(gathered=1.0)
    monkeypatch.setitem(paths.MEASURED, "H999", measured)
    assert paths.rates_of("NVIDIA H999 NVL") is measured and paths.rates_of("NVIDIA T4") is paths.ESTIMATED
