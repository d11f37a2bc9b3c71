"""Optimizer state survives the disk bit for bit, by parameter name."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.train.optimizer import adamw, load_state, save_state, warmed_up
from storage.errors import IntegrityError
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
