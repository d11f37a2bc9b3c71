"""The pass over the vocabulary that logs the current student, against whole rows of logits."""

import pytest
import torch

from pipeline.train import log_normaliser
from pipeline.train.current import summary

N, D, V, K = 9, 16, 700, 12


@pytest.mark.parametrize("options", [{}, {"scale": 0.5, "softcap": 3.0}, {"vocab": 650}, {"bias": True}])
@pytest.mark.parametrize("chunk", [50, 128, 4096])
def test_the_summary_of_chunks_is_that_of_whole_rows(monkeypatch, options, chunk):
    monkeypatch.setitem(log_normaliser.CHUNK_IDS, "cpu", (chunk, chunk))
    random = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((N, D), (V, D)))
    bias = torch.randn(V, generator=random, dtype=torch.float64) if options.pop("bias", False) else None
    logits = hidden @ weight.T + (0 if bias is None else bias)
    logits = logits * options.get("scale", 1.0)
    if "softcap" in options:
        logits = options["softcap"] * (logits / options["softcap"]).tanh()
    logits = logits[:, :options.get("vocab", V)]
    found = summary(hidden, weight, K, bias=bias, **options)
    log_p = logits.log_softmax(1)
    torch.testing.assert_close(found.lse_N, logits.logsumexp(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.entropy_N, -(log_p.exp() * log_p).sum(1), rtol=1e-11, atol=1e-11)
    assert torch.equal(found.topk_ids_Nk, logits.topk(K).indices)


def test_a_distribution_on_one_token_has_no_entropy_and_no_nan():
    weight = torch.zeros(V, 1)
    weight[3] = 1e4
    found = summary(torch.ones(2, 1), weight, 1)
    assert torch.equal(found.entropy_N, torch.zeros(2)) and found.topk_ids_Nk.tolist() == [[3], [3]]
