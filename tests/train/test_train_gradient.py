"""The trainer's gradient is that of one dense loop over whole logits in float64, however a step is cut."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXJapaneseConfig, OPTConfig, Qwen2Config

from pipeline import objectives
from pipeline.config.model import SampledToken, TailBucketTopK, TeacherTopKLsm, Train
from pipeline.train.optimizer import adamw
from pipeline.train.probe import Probe
from pipeline.train.reader import join
from pipeline.train.student import Student
from pipeline.train.trainer import Trainer
from storage.errors import UserError
from tests.train.tables import made_up_round, tiny_model

CONFIGS = {"teacher_topk_lsm": TeacherTopKLsm(), "tail_bucket_topk": TailBucketTopK(), "sampled_token": SampledToken()}


def trainer_of(tables, model, objective, **settings) -> Trainer:
    settings = Train(**settings)
    student = Student(model, precision=settings.precision, gradient_checkpointing=settings.gradient_checkpointing)
    optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    return Trainer(student, optimizer, objectives.build(objective, settings.reduction), settings,
                   join(*tables, "here"), grid=32)


def gradient(trainer: Trainer, rollouts: np.ndarray) -> dict[str, torch.Tensor]:
    trainer.accumulate(*trainer.prepare_step(rollouts), Probe(32))
    return {name: parameter.grad for name, parameter in trainer.student.model.named_parameters()}


def lsm(log_p_V, row) -> torch.Tensor:
    ids = torch.tensor(row["teacher_topk_ids"])
    log_p, log_q = log_p_V[ids], torch.tensor(row["teacher_topk_log_probs"], dtype=torch.float64)
    log_p, log_q = log_p - log_p.logsumexp(0), log_q - log_q.logsumexp(0)
    return (log_p.exp() * (log_p - log_q)).sum()


def tail_bucket(log_p_V, row) -> torch.Tensor:
    ids = torch.tensor(row["teacher_topk_ids"])
    log_p, log_q = log_p_V[ids], torch.tensor(row["teacher_topk_log_probs"], dtype=torch.float64)
    p_tail, q_tail = 1 - log_p.exp().sum(), np.exp(row["teacher_log_tail"])
    return (log_p.exp() * (log_p - log_q)).sum() + p_tail * (p_tail.log() - np.log(q_tail))


def sampled(log_p_V, row) -> torch.Tensor:
    return -(row["teacher_log_prob"] - row["student_log_prob"]) * log_p_V[row["token_id"]]


REFERENCES = {"teacher_topk_lsm": lsm, "tail_bucket_topk": tail_bucket, "sampled_token": sampled}


def reference(tables, model, objective: str, rollouts, mean_of: str = "unmasked") -> tuple[float, dict]:
    """(loss, gradient by name) of a plain loop with plain autograd: the mean over unmasked or all tokens, or over
    rollouts."""
    model = copy.deepcopy(model).double()
    all_rollouts, tokens, mask = (table.to_pylist() for table in tables)
    means, total, unmasked, count = [], 0.0, 0, 0
    for i in rollouts:
        losses = []
        prompt, response = all_rollouts[i]["prompt_tokens"], all_rollouts[i]["response_tokens"]
        log_p_TV = model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        for row, masked in zip(tokens, mask):
            if row["rollout_id"] == all_rollouts[i]["rollout_id"]:
                loss = REFERENCES[objective](log_p_TV[len(prompt) + row["position"] - 1], row)
                losses += [masked["weight"] * loss] * (masked["weight"] != 0)
                count += 1
        total, unmasked = total + sum(losses), unmasked + len(losses)
        means += [sum(losses) / len(losses)] if losses else []
    value = {"unmasked": total / unmasked, "all": total / count, "rollouts": sum(means) / len(means)}[mean_of]
    value.backward()
    return value.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def far_apart(found: dict, expected: dict) -> float:
    """Largest difference, relative to the largest entry of the parameter's gradient."""
    assert found.keys() == expected.keys()
    return max(((found[name].double() - value).abs().max() / value.abs().max()).item()
               for name, value in expected.items())


@pytest.fixture(scope="module")
def tables():
    return made_up_round(9)


def moved(seed: int = 1, **shape):
    """A student that is no longer the one that wrote the rollouts."""
    model = tiny_model(seed, **shape)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    return model


@pytest.mark.parametrize("micro_batch_tokens", [1, 40, 10_000])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("objective", CONFIGS)
def test_the_gradient_is_that_of_a_dense_loop(tables, objective, tied, micro_batch_tokens):
    model, rollouts = moved(tied=tied), np.array([7, 0, 3, 4, 8])
    loss, expected = reference(tables, model, objective, rollouts)
    trainer = trainer_of(tables, model, CONFIGS[objective], micro_batch_tokens=micro_batch_tokens)
    assert far_apart(gradient(trainer, rollouts), expected) < 1e-5
    assert trainer.step(rollouts)["loss"] == pytest.approx(loss, rel=1e-5)


def test_the_denominator_may_be_all_tokens(tables):
    model, rollouts = moved(), np.arange(9)
    loss, expected = reference(tables, model, "teacher_topk_lsm", rollouts, "all")
    trainer = trainer_of(tables, model, TeacherTopKLsm(), denominator="all")
    assert far_apart(gradient(trainer, rollouts), expected) < 1e-5
    assert trainer.step(rollouts)["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("micro_batch_tokens", [1, 40, 10_000])
def test_the_reduction_may_be_the_mean_over_rollouts(tables, micro_batch_tokens):
    model, rollouts = moved(), np.arange(9)
    loss, expected = reference(tables, model, "teacher_topk_lsm", rollouts, "rollouts")
    trainer = trainer_of(tables, model, TeacherTopKLsm(), reduction="sequence_mean",
                         micro_batch_tokens=micro_batch_tokens)
    assert far_apart(gradient(trainer, rollouts), expected) < 1e-5
    assert trainer.step(rollouts)["loss"] == pytest.approx(loss, rel=1e-5)
    assert loss != pytest.approx(reference(tables, model, "teacher_topk_lsm", rollouts)[0], rel=1e-2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("objective", CONFIGS)
def test_gradient_checkpointing_computes_layers_twice_and_the_same_gradient(tables, objective, precision):
    found = []
    for on in (False, True):
        model = moved()
        trainer = trainer_of(tables, model, CONFIGS[objective], precision=precision, gradient_checkpointing=on,
                             micro_batch_tokens=40)
        calls = []
        model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        found.append(gradient(trainer, np.arange(9)))
        works, _ = trainer.prepare_step(np.arange(9))
        assert len(calls) == len(works) * (2 if on else 1) > 1
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_gradient_checkpointing_leaves_dropout_off():
    """Of layers that hold modules with dropout, and of layers that apply it themselves."""
    torch.manual_seed(0)
    shape = dict(vocab_size=48, num_hidden_layers=2, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    for config in (OPTConfig(**shape, hidden_size=16, ffn_dim=32, num_attention_heads=2, word_embed_proj_dim=16,
                             dropout=0.5, attention_dropout=0.5),
                   Qwen2Config(**shape, hidden_size=16, intermediate_size=32, num_attention_heads=2,
                               num_key_value_heads=1, attention_dropout=0.5)):
        model, ids_BT = AutoModelForCausalLM.from_config(config), torch.arange(14).view(2, 7)
        gradients = []
        for on in (False, True):
            student = Student(copy.deepcopy(model), gradient_checkpointing=on)
            student.hidden(ids_BT).square().sum().backward()
            gradients.append({name: p.grad for name, p in student.model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
        assert all(torch.equal(gradients[0][name], value) for name, value in gradients[1].items())


def test_a_model_whose_layers_cannot_be_computed_again_is_refused_in_one_line():
    model = AutoModelForCausalLM.from_config(GPTNeoXJapaneseConfig(
        vocab_size=48, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_multiple_size=2))
    with pytest.raises(UserError, match="set train.gradient_checkpointing = false") as caught:
        Student(model, gradient_checkpointing=True)
    assert "\n" not in str(caught.value)


def test_a_padding_row_of_the_embedding_gets_no_input_gradient_as_in_the_model_itself(tables):
    model, rollouts = moved(tied=False, pad=5), np.arange(9)
    _, expected = reference(tables, model, "teacher_topk_lsm", rollouts)
    found = gradient(trainer_of(tables, model, TeacherTopKLsm()), rollouts)
    assert far_apart(found, expected) < 1e-5
    assert not found["model.embed_tokens.weight"][5].any()


def test_gradients_of_one_step_do_not_leak_into_the_next(tables):
    trainer = trainer_of(tables, moved(), TailBucketTopK(), micro_batch_tokens=40)
    gradient(trainer, np.array([1, 2]))
    again = {name: value.clone() for name, value in gradient(trainer, np.array([7, 0])).items()}
    fresh = gradient(trainer_of(tables, moved(), TailBucketTopK(), micro_batch_tokens=40), np.array([7, 0]))
    assert all(torch.equal(again[name], value) for name, value in fresh.items())


@pytest.mark.parametrize("objective", CONFIGS)
def test_micro_batch_tokens_change_nothing_but_rounding(tables, objective):
    def weights(micro_batch_tokens):
        trainer = trainer_of(tables, moved(), CONFIGS[objective], micro_batch_tokens=micro_batch_tokens,
                             rollouts_per_step=4, warmup_steps=0, eps=1e-2)
        steps = trainer.train_round(0, 0, lambda *_: None)
        return [row["loss"] for row in steps], torch.cat([p.detach().flatten() for p in
                                                          trainer.student.model.parameters()])

    whole, one_by_one = weights(10_000), weights(1)
    assert whole[0] == pytest.approx(one_by_one[0], rel=1e-6, abs=1e-7)
    assert (whole[1] - one_by_one[1]).abs().max() < 1e-6


def test_bfloat16_forward_keeps_float32_master_weights_and_a_near_gradient(tables):
    model, rollouts = moved(), np.arange(9)
    _, expected = reference(tables, model, "teacher_topk_lsm", rollouts)
    found = gradient(trainer_of(tables, model, TeacherTopKLsm(), precision="bfloat16"), rollouts)
    assert all(value.dtype == torch.float32 for value in found.values())
    assert 1e-5 < far_apart(found, expected) < 0.1
