"""Cached and live teachers against whole logits of both models in float64: losses and every parameter's gradient."""

import copy

import pytest
import torch
from transformers import PhiConfig, PhiForCausalLM

from pipeline.hidden import coding
from pipeline.hidden.head import read_head, write_head
from pipeline.models import output_head, trunk
from pipeline.objectives.divergence import forward_kl, jsd, reverse_kl
from pipeline.train.full_vocabulary import full_vocabulary_loss
from pipeline.train.inputs import Inputs
from pipeline.train.student import Student
from pipeline.train.teacher import CachedTeacher, LiveTeacher
from tests.score.families import tiny

torch.set_num_threads(1)
VOCABULARY, SEQUENCES, LENGTH = 200, 4, 12
FAMILIES = ["qwen2-tied", "llama-untied", "gemma2-softcap", "cohere-scale", "phi-bias"]
TOLERANCES = {"live": 1e-5, "bfloat16": 2**-8, "float8": 2**-4}
"""Nats, and share of the largest gradient. A number that is stored is off by at most 2^-8 of itself in bfloat16 and
2^-4 in float8. These teachers' logits spread over about one nat, and their errors mostly cancel in the sum over the
width: so the unit of rounding itself, in nats, is what no token may exceed (seen: 2.8e-3 and 5.5e-2; live 1.1e-6)."""
DIVERGENCES = {"reverse_kl": reverse_kl, "forward_kl": forward_kl, "jsd": jsd(0.5)}


def kl(p, q):
    return (p * (p.log() - q.log())).sum(-1)


DENSE = {"reverse_kl": kl, "forward_kl": lambda p, q: kl(q, p),
         "jsd": lambda p, q: (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2}


def model_of(family, seed):
    if family != "phi-bias":
        return tiny(family, vocabulary=VOCABULARY + 8, seed=seed)
    torch.manual_seed(seed)
    model = PhiForCausalLM(PhiConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                                     vocab_size=VOCABULARY + 8, initializer_range=0.2, bos_token_id=0, eos_token_id=0))
    torch.nn.init.normal_(model.lm_head.bias)
    return model.eval()


def input_ids():
    return torch.randint(1, VOCABULARY, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """(student, teacher, what whole logits say by divergence)."""
    student, teacher = model_of(request.param, 1), model_of(request.param, 2)
    return student, teacher, {name: dense(student, teacher, divergence) for name, divergence in DENSE.items()}


def teacher_of(model, how, folder):
    """The source under test; its rows are all positions of `input_ids`."""
    if how == "live":
        return LiveTeacher(model, output_head(model))
    with torch.no_grad():
        hidden_ND = trunk(model)(input_ids()).flatten(0, 1)
    write_head(folder, output_head(model), VOCABULARY, "f" * 64)
    return CachedTeacher(read_head(folder), how, *coding.encode(hidden_ND, how))


def through(model, teacher, divergence):
    """(loss_N, gradients by parameter) of the product."""
    model = copy.deepcopy(model)
    student, inputs, rows = Student(model), Inputs(input_ids()), torch.arange(SEQUENCES * LENGTH)
    loss_N = full_vocabulary_loss(student.hidden(inputs), student.head, teacher.hidden(rows.numpy(), inputs, rows),
                                  teacher.head, divergence, vocab=VOCABULARY)
    loss_N.sum().backward()
    return loss_N.detach().double(), {name: p.grad.double() for name, p in model.named_parameters()}


def dense(student, teacher, divergence):
    student, teacher = (copy.deepcopy(model).double() for model in (student, teacher))
    p_NV, q_NV = (model(input_ids=input_ids()).logits.flatten(0, 1)[:, :VOCABULARY].softmax(-1)
                  for model in (student, teacher))
    loss_N = divergence(p_NV, q_NV.detach())
    loss_N.sum().backward()
    return loss_N.detach(), {name: p.grad for name, p in student.named_parameters()}


@pytest.mark.parametrize("how, tolerance", TOLERANCES.items(), ids=TOLERANCES)
def test_losses_and_all_gradients_are_those_of_whole_logits(pair, how, tolerance, tmp_path):
    student, teacher, expected = pair
    source = teacher_of(teacher, how, tmp_path)
    for name, divergence in DIVERGENCES.items():
        (loss_N, found), (expected_N, dense_gradients) = through(student, source, divergence), expected[name]
        assert (loss_N - expected_N).abs().max() <= tolerance and expected_N.mean() > 0.01
        largest = max(gradient.abs().max() for gradient in dense_gradients.values())
        assert found.keys() == dense_gradients.keys()
        for parameter, gradient in dense_gradients.items():
            assert (found[parameter] - gradient).abs().max() <= tolerance * largest, parameter


def test_the_teacher_of_a_training_step_is_never_trained(pair):
    student, teacher, _ = pair
    through(student, teacher_of(teacher, "live", None), reverse_kl)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_comes_back_from_its_files_as_it_was(family, tmp_path):
    head = output_head(model_of(family, 2))
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        write_head(folder, head, VOCABULARY, "f" * 64)
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
               for name in ("head.safetensors", "head.json"))
    found, hidden_ND = read_head(tmp_path / "one"), torch.randn(3, 32)
    assert torch.equal(found.logits(hidden_ND), head.logits(hidden_ND, VOCABULARY))
    assert found.weight_VD.dtype == head.weight_VD.dtype and len(found.weight_VD) == VOCABULARY
