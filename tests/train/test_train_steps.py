"""Steps, rounds and checkpoints: counted, logged, stopped, carried on bit for bit."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline import objectives
from pipeline.config.model import SampledToken, TailBucketTopK, TeacherTopKLsm, Train
from pipeline.models import load_model
from pipeline.train.checkpoint import write_checkpoint
from pipeline.train.optimizer import adamw, load_state
from pipeline.train.probe import probed
from pipeline.train.reader import join
from pipeline.train.student import Student
from pipeline.train.trainer import Trainer
from storage import schemas
from storage.errors import UserError
from tests.tiny import byte_tokenizer, save_model
from tests.train.tables import made_up_round, tiny_model


def trainer_of(tables, model, folder: Path | None = None, *, objective=None, run_steps: int = 0, optimizer=None,
               **settings) -> Trainer:
    """A trainer whose optimizer comes from `folder`, if one is given, that nothing ends early unless asked to."""
    settings = Train(**{"learning_rate": 1e-2, "rollouts_per_step": 4, "warmup_steps": 6, "age_cap": 100,
                        "drift_fuse": None, **settings})
    student = Student(model)
    optimizer = optimizer or adamw(model, learning_rate=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    if folder is not None:
        run_steps = load_state(optimizer, model, folder)
    return Trainer(student, optimizer, objectives.build(objective or TeacherTopKLsm()), settings,
                   join(*tables, "here"), grid=32, run_steps=run_steps)


def train(trainer: Trainer, round_number: int = 0) -> list[dict]:
    return trainer.train_round(3, round_number, lambda *_: None)


@pytest.fixture(scope="module")
def tables():
    return made_up_round(11, grid=32, longest=60)


def test_rows_of_a_round_fit_the_steps_table_and_add_up(tables):
    rows = train(trainer_of(tables, tiny_model(1), epochs=2, micro_batch_tokens=200))
    table = pa.Table.from_pylist(rows, schema=schemas.STEPS)
    assert table["step"].to_pylist() == table["step_in_round"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert table["rollouts"].to_pylist() == [4, 4, 3, 4, 4, 3]
    assert sum(table["tokens"].to_pylist()) == 2 * len(tables[1])
    kept = np.count_nonzero(tables[2]["weight"].to_numpy())
    assert sum(table["unmasked_tokens"].to_pylist()) == 2 * kept < 2 * len(tables[1])
    assert table["staleness"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert table["learning_rate"].to_pylist() == pytest.approx([1e-2 * step / 6 for step in range(1, 7)])


def test_the_first_step_is_on_policy_and_later_ones_drift(tables):
    rows = train(trainer_of(tables, tiny_model(1), epochs=4))
    assert sum(row["probe_tokens"] for row in rows) > 30
    first, last = ([row for row in part if row["probe_tokens"]] for part in (rows[:1], rows[-3:]))
    assert all(row["drift"] < 1e-4 and row["ess"] > 1 - 1e-6 for row in first)
    assert all(row["drift"] > 1e-3 for row in last)


def test_probes_of_the_first_step_are_means_of_the_scorers_columns(tables):
    trainer = trainer_of(tables, tiny_model(1), micro_batch_tokens=100)
    data = trainer.data
    row = trainer.step(np.arange(11))
    chosen = probed(data.rollout_id_R[data.rollout_of_rows()], data.position_N)
    column = {name: tables[1][name].to_numpy()[chosen].astype(np.float64)
              for name in ("student_log_prob", "teacher_log_prob", "student_log_tail")}
    assert row["probe_tokens"] == chosen.sum() > 5
    assert row["opd_reverse_kl"] == pytest.approx((column["student_log_prob"] - column["teacher_log_prob"]).mean(),
                                                  rel=1e-5)
    assert row["student_mass"] == pytest.approx((1 - np.exp(column["student_log_tail"])).mean(), rel=1e-5)


def test_training_moves_the_student_towards_the_teacher(tables):
    rows = train(trainer_of(tables, tiny_model(1), epochs=12))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


def with_weights(tables, weight: np.ndarray) -> tuple:
    mask = tables[2].set_column(2, schemas.MASK.field("weight"), pa.array(weight, pa.float32()))
    return tables[0], tables[1], mask


def test_a_step_without_an_unmasked_token_is_logged_and_changes_nothing(tables):
    masked = with_weights(tables, np.zeros(len(tables[1])))
    trainer = trainer_of(masked, tiny_model(1))
    before = {name: value.clone() for name, value in trainer.student.model.state_dict().items()}
    rows = train(trainer)
    assert [row["step"] for row in rows] == [1, 2, 3] and trainer.run_steps == 3
    assert all(row["unmasked_tokens"] == row["loss"] == row["grad_norm"] == row["staleness"] == 0 for row in rows)
    assert sum(row["probe_tokens"] for row in rows) > 0
    assert all(torch.equal(trainer.student.model.state_dict()[name], value) for name, value in before.items())
    assert not trainer.optimizer.state


def test_masked_rollouts_at_the_end_cost_no_tokens_of_the_forward_pass(tables):
    first_only = (tables[1]["position"].to_numpy() == 0).astype(np.float32)
    trainer = trainer_of(with_weights(tables, first_only), tiny_model(1), micro_batch_tokens=1)
    works, _ = trainer.prepare_step(np.arange(11))
    whole, _ = trainer_of(tables, tiny_model(1), micro_batch_tokens=1).prepare_step(np.arange(11))
    assert sum(work.inputs.ids_BT.numel() for work in works) < 0.8 * sum(work.inputs.ids_BT.numel() for work in whole)
    assert sum(len(work.batch) for work in works) == 11


def test_a_loss_that_is_not_finite_stops_naming_step_and_batch(tables):
    scores = tables[1].to_pylist()
    scores[5]["teacher_log_prob"] = math.inf
    broken = (tables[0], pa.Table.from_pylist(scores, schema=tables[1].schema), tables[2])
    trainer = trainer_of(with_weights(broken, np.ones(len(scores))), tiny_model(1), objective=SampledToken(),
                         micro_batch_tokens=1)
    with pytest.raises(UserError, match=rf"step \d of the run.*micro-batch \d of \d, rollouts "
                                        rf"{scores[5]['rollout_id']}, is -?inf") as caught:
        train(trainer)
    assert "\n" not in str(caught.value)


def test_a_gradient_that_is_not_finite_stops_before_the_update(tables):
    trainer = trainer_of(tables, tiny_model(1))
    trainer.student.model.model.norm.weight.register_hook(lambda grad: grad * math.inf)
    before = trainer.student.head.weight_VD.clone()
    with pytest.raises(UserError, match="step 1 of the run.*gradient's norm is (nan|inf)"):
        train(trainer)
    assert torch.equal(trainer.student.head.weight_VD, before)


def test_the_gradient_is_clipped_by_its_global_norm_and_logged_before(tables):
    free, tight = (trainer_of(tables, tiny_model(1), max_grad_norm=limit) for limit in (1e9, 1e-3))
    for trainer in (free, tight):
        row = trainer.step(np.arange(11))
        grads = torch.cat([p.grad.flatten() for p in trainer.student.model.parameters()])
        expected = row["grad_norm"] if trainer is free else 1e-3
        assert grads.norm().item() == pytest.approx(expected, rel=1e-3) and row["grad_norm"] > 0.01


def state(model) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("objective", [TeacherTopKLsm(), TailBucketTopK()], ids=lambda config: config.type)
def test_two_rounds_through_a_checkpoint_are_one_continuous_run_bit_for_bit(tables, tmp_path, objective):
    tokenizer = byte_tokenizer()
    start = save_model(tmp_path / "start", tokenizer, seed=1)
    models = load_model(start), load_model(save_model(tmp_path / "teacher", tokenizer, seed=2))
    rounds = [made_up_round(7, seed, vocab=259, student=models[0], teacher=models[1]) for seed in (1, 2)]

    straight = load_model(start)
    first = trainer_of(rounds[0], straight, objective=objective)
    rows = train(first, 0)
    rows += train(trainer_of(rounds[1], straight, objective=objective, run_steps=first.run_steps,
                             optimizer=first.optimizer), 1)

    model = load_model(start)
    trainer = trainer_of(rounds[0], model, objective=objective)
    resumed = train(trainer, 0)
    (tmp_path / "next").mkdir()
    write_checkpoint(model, trainer.optimizer, trainer.run_steps, start, tmp_path / "next")
    model = load_model(tmp_path / "next")
    resumed += train(trainer_of(rounds[1], model, tmp_path / "next", objective=objective), 1)
    assert resumed == rows and [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(torch.equal(state(model)[name], value) for name, value in state(straight).items())


def test_a_checkpoint_is_a_hugging_face_folder_with_the_starting_tokenizer(tables, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    start = save_model(tmp_path / "start", byte_tokenizer(), seed=1)
    (start / "round.json").write_text("{}")
    (start / "notes.bin").write_text("left behind")
    model = load_model(start)
    trainer = trainer_of(made_up_round(5, 1, vocab=259), model)
    train(trainer)
    folders = []
    for name in ("a", "another-name"):
        folder = tmp_path / name
        folder.mkdir()
        write_checkpoint(model, trainer.optimizer, trainer.run_steps, start, folder)
        folders.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert folders[0] == folders[1]
    assert set(folders[0]) == {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
                               "tokenizer_config.json", "chat_template.jinja", "optimizer.safetensors"}
    carried = set(folders[0]) - {"model.safetensors", "config.json", "optimizer.safetensors"}
    assert all(folders[0][name] == (start / name).read_bytes() for name in carried)
    assert str(tmp_path).encode() not in b"".join(folders[0].values())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(tmp_path / "a").chat_template
