"""Optimizer state survives the disk bit for bit, by parameter name."""

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters

from pipeline.train.compiling import compile_layers
from pipeline.train.optimizer import adamw, adamw8bit, load_state, save_state, warmed_up
from pipeline.train.student import Student
from storage.errors import IntegrityError, UserError
from tests.train.tables import tiny_model


def build(model, weight_decay=0.0):
    return adamw(model, learning_rate=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay)


def train(model, optimizer, steps: range) -> None:
    for step in steps:
        tokens = torch.randint(0, 48, (2, 7), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()


def test_training_saved_and_loaded_goes_on_bit_for_bit(tmp_path):
    straight, broken = tiny_model(1), tiny_model(1)
    optimizer = build(straight, 0.1)
    train(straight, optimizer, range(6))
    first = build(broken, 0.1)
    train(broken, first, range(3))
    save_state(first, broken, 3, tmp_path)
    second = build(broken, 0.1)
    assert load_state(second, broken, tmp_path) == 3
    train(broken, second, range(3, 6))
    for name, value in straight.state_dict().items():
        assert torch.equal(broken.state_dict()[name], value), name


def test_a_folder_without_state_is_a_fresh_start(tmp_path):
    model = tiny_model(1)
    optimizer = build(model)
    assert load_state(optimizer, model, tmp_path) == 0 and not optimizer.state


def test_a_tied_weight_is_saved_once_under_the_embeddings_name(tmp_path):
    model = tiny_model(1, tied=True)
    optimizer = build(model)
    train(model, optimizer, range(1))
    save_state(optimizer, model, 1, tmp_path)
    names = load_file(tmp_path / "optimizer.safetensors")
    assert "model.embed_tokens.weight.exp_avg" in names and not any("lm_head" in name for name in names)


def test_state_of_another_model_is_refused(tmp_path):
    small, large = tiny_model(1, layers=1), tiny_model(1, layers=2)
    wide = tiny_model(1, layers=1, hidden=32)
    optimizer = build(large)
    train(large, optimizer, range(1))
    save_state(optimizer, large, 1, tmp_path)
    with pytest.raises(IntegrityError, match="which the model does not have"):
        load_state(build(small), small, tmp_path)
    with pytest.raises(IntegrityError, match="does not fit the model"):
        load_state(build(wide), wide, tmp_path)
    tensors = load_file(tmp_path / "optimizer.safetensors")
    del tensors["model.norm.weight.step"]
    save_file(tensors, tmp_path / "optimizer.safetensors")
    with pytest.raises(IntegrityError, match="model.norm.weight"):
        load_state(build(large), large, tmp_path)


def test_norms_and_biases_do_not_decay():
    decaying, still = build(tiny_model(1), 0.5).param_groups
    assert decaying["weight_decay"] == 0.5 and all(p.ndim == 2 for p in decaying["params"])
    assert still["weight_decay"] == 0.0 and all(p.ndim == 1 for p in still["params"])


def test_warm_up_is_linear_over_the_runs_steps_and_then_constant():
    assert [warmed_up(1.0, step, 4) for step in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert warmed_up(0.5, 1, 0) == 0.5


def eight_bit(model):
    return adamw8bit(model, learning_rate=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def test_eight_bit_moments_saved_and_loaded_go_on_bit_for_bit(tmp_path):
    pytest.importorskip("bitsandbytes")
    straight, broken = tiny_model(1, hidden=96), tiny_model(1, hidden=96)
    train(straight, eight_bit(straight), range(6))
    first = eight_bit(broken)
    train(broken, first, range(3))
    save_state(first, broken, 3, tmp_path)
    kinds = {value.dtype for name, value in load_file(tmp_path / "optimizer.safetensors").items() if "state" in name}
    assert kinds == {torch.uint8, torch.float32}
    second = eight_bit(broken)
    assert load_state(second, broken, tmp_path) == 3
    train(broken, second, range(3, 6))
    for name, value in straight.state_dict().items():
        assert torch.equal(broken.state_dict()[name], value), name


def test_the_state_of_another_kind_of_optimizer_is_a_fresh_start(tmp_path):
    pytest.importorskip("bitsandbytes")
    model = tiny_model(1, hidden=96)
    for build_one, build_other in ((eight_bit, build), (build, eight_bit)):
        optimizer = build_one(model)
        train(model, optimizer, range(1))
        save_state(optimizer, model, 1, tmp_path)
        other = build_other(model)
        assert load_state(other, model, tmp_path) == 0 and not other.state


def test_without_bitsandbytes_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match="adamw8bit' needs bitsandbytes.*pip install") as caught:
        eight_bit(tiny_model(1))
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(600)
def test_compiled_layers_give_the_same_gradients():
    plain, compiled = tiny_model(1, layers=1), tiny_model(1, layers=1)
    counters.clear()
    compile_layers(compiled)
    grads = []
    for model in (plain, compiled):
        Student(model).hidden(torch.arange(14).view(2, 7)).square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert all(torch.allclose(grads[1][name], grad, rtol=1e-4, atol=1e-4) for name, grad in grads[0].items())
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"


def test_compiling_without_a_compiler_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"train.compile = true needs a C\+\+ compiler") as caught:
        compile_layers(tiny_model(1))
    assert "\n" not in str(caught.value)
