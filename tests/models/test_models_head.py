import pytest
import torch

from pipeline.models import Head, check_head, output_head, trunk
from storage.errors import UserError
from tests.score.families import FAMILIES, tiny


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_head_of_trunk_is_the_model(family, dtype, tolerance):
    model = tiny(family, vocabulary=300, seed=1, dtype=dtype)
    check_head(model)
    ids_BT = torch.randint(300, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids_BT).logits.float()
        found = output_head(model).logits(trunk(model)(ids_BT, torch.arange(11)[None]).flatten(0, 1))
    assert torch.allclose(found, expected.flatten(0, 1), rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("family, tied", [("qwen2-tied", True), ("qwen2-untied", False)])
def test_the_heads_weight_is_the_models_own_parameter(family, tied):
    model = tiny(family, vocabulary=300, seed=1)
    weight = output_head(model).weight_VD
    assert weight is model.lm_head.weight
    assert (weight is model.get_input_embeddings().weight) == tied


def test_a_bias_is_part_of_the_head():
    head = Head(torch.randn(7, 3), torch.randn(7), scale=0.5, softcap=2.0)
    hidden = torch.randn(4, 3)
    expected = 2 * torch.tanh(0.5 * (hidden @ head.weight_VD.T + head.bias) / 2)
    assert torch.allclose(head.logits(hidden), expected, atol=1e-6)
    assert torch.allclose(head.logits(hidden, 5), expected[:, :5], atol=1e-6)


def test_a_model_that_does_more_to_its_logits_is_refused():
    model = tiny("qwen2-untied", vocabulary=300, seed=1)
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits - 0.1 * logits.mean(-1, keepdim=True) + 1)
    with pytest.raises(UserError, match="in a way that pipeline/models/head.py does not describe"):
        check_head(model)


def test_a_model_without_a_linear_head_is_refused():
    from transformers import Qwen2Config, Qwen2Model

    with pytest.raises(UserError, match="Qwen2Model has no linear output head"):
        output_head(Qwen2Model(Qwen2Config(hidden_size=32, intermediate_size=32, num_hidden_layers=1, vocab_size=30,
                                           num_attention_heads=4, num_key_value_heads=2)))
