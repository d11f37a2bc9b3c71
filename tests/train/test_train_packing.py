"""Rollouts packed end to end: the gradients of the padded table, by two ways that share no code."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig, Qwen3Config

from pipeline import objectives
from pipeline.config.model import TailBucketTopK, TeacherTopKLsm, Train
from pipeline.train.attention import can_pack, use_packing
from pipeline.train.batches import micro_batches
from pipeline.train.inputs import Inputs
from pipeline.train.optimizer import adamw
from pipeline.train.probe import Probe
from pipeline.train.reader import join
from pipeline.train.student import Student
from pipeline.train.trainer import Trainer
from storage.errors import UserError
from tests.train.tables import made_up_round, tiny_model

SHAPE = dict(vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1, pad_token_id=None)


@pytest.fixture(scope="module")
def tables():
    return made_up_round(11, 3, longest=60)


def gradients(tables, objective, packed: bool, **settings) -> tuple[dict, list]:
    model = tiny_model(4)
    if packed:
        assert use_packing(model, "packed", "float32", "sdpa")
    settings = Train(**{"micro_batch_tokens": 90, **settings})
    student = Student(model, gradient_checkpointing=settings.gradient_checkpointing)
    optimizer = adamw(model, learning_rate=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    trainer = Trainer(student, optimizer, objectives.build(objective), settings, join(*tables, "here"), grid=32,
                      packed=packed)
    works, denominator = trainer.prepare_step(np.arange(11))
    trainer.accumulate(works, denominator, Probe(32))
    return {name: p.grad for name, p in model.named_parameters()}, works


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("objective", [TeacherTopKLsm(), TailBucketTopK()], ids=lambda config: config.type)
def test_packed_gradients_are_the_padded_ones(tables, objective, checkpointing):
    padded, table = gradients(tables, objective, False)
    packed, rows = gradients(tables, objective, True, gradient_checkpointing=checkpointing)
    assert all(work.inputs.ids_BT.shape[0] == 1 for work in rows)
    assert sum(work.inputs.ids_BT.numel() for work in rows) < sum(work.inputs.ids_BT.numel() for work in table)
    largest = max(grad.abs().max() for grad in padded.values())
    for name, grad in padded.items():
        assert (packed[name] - grad).abs().max() < 1e-6 * max(1.0, largest), name


@pytest.mark.parametrize("config", [Qwen3Config(**SHAPE, head_dim=8), LlamaConfig(**SHAPE),
                                    MistralConfig(**SHAPE, sliding_window=None)], ids=lambda config: config.model_type)
def test_a_packed_row_is_what_transformers_makes_of_it_with_a_block_mask(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    lengths = np.array([5, 9, 1, 7])
    ids_1T = torch.randint(0, 48, (1, lengths.sum()))
    inputs = Inputs(ids_1T, lengths)
    position_ids = inputs.boundaries(torch.device("cpu"))["position_ids"]
    masked = model.base_model(input_ids=ids_1T, position_ids=position_ids, use_cache=False).last_hidden_state[0]
    assert use_packing(model, "packed", "float32", "sdpa")
    assert torch.allclose(Student(model).hidden(inputs), masked, atol=1e-6)
    alone = torch.cat([Student(model).hidden(part) for part in ids_1T.split(lengths.tolist(), dim=1)])
    assert torch.allclose(alone, masked, atol=1e-6)


def test_a_packed_pass_is_filled_up_to_its_limit_and_loses_no_rollout():
    length_R = np.random.default_rng(1).integers(0, 50, 40)
    batches = micro_batches(np.arange(40), length_R, 120, packed=True)
    assert sorted(np.concatenate([batch.rollouts_B for batch in batches])) == list(np.flatnonzero(length_R))
    sums = [batch.packed_B.sum() for batch in batches]
    assert max(sums) <= 120 and min(sums[:-1]) > 120 - 50
    assert len(batches) <= len(micro_batches(np.arange(40), length_R, 120))
    assert all(batch.starts_B.tolist() == [0, *np.cumsum(batch.packed_B)[:-1]] for batch in batches)
    assert len(micro_batches(np.arange(3), np.array([200, 300, 7]), 120, packed=True)) == 3


def test_packing_is_left_alone_on_a_cpu_and_refused_where_attention_is_not_plain():
    model = tiny_model(1)
    assert not use_packing(model, "auto", "bfloat16", "sdpa") and not use_packing(model, "padded", "bfloat16", "sdpa")
    assert model.config._attn_implementation == "sdpa"
    gemma = AutoModelForCausalLM.from_config(Gemma2Config(**{**SHAPE, "pad_token_id": 0}, head_dim=8))
    assert not can_pack(gemma)
    assert not can_pack(AutoModelForCausalLM.from_config(MistralConfig(**SHAPE, sliding_window=8)))
    with pytest.raises(UserError, match="Gemma2ForCausalLM caps its attention.*set train.packing = 'padded'") as caught:
        use_packing(gemma, "packed", "float32", "sdpa")
    assert "\n" not in str(caught.value)
