"""When a round's training ends early: the age cap and the drift fuse."""

import itertools

import pytest

from pipeline.config.model import SampledToken, TeacherTopKLsm
from pipeline.train.refresh import POSITIONS, DriftFuse
from tests.train.tables import made_up_round, tiny_model
from tests.train.test_train_steps import train, trainer_of


@pytest.fixture(scope="module")
def tables():
    return made_up_round(48, grid=32, longest=60)  # 12 steps


def test_the_fuse_needs_enough_positions_before_it_speaks():
    fuse = DriftFuse(0.05)
    assert not fuse.blows(9.0, POSITIONS - 1)
    assert fuse.blows(9.0, 1)


def test_the_fuse_weighs_the_latest_steps_by_their_positions():
    fuse = DriftFuse(0.05)
    assert not fuse.blows(0.0, POSITIONS)
    assert not fuse.blows(0.04, POSITIONS)       # the first step has left the window
    assert fuse.blows(0.051, POSITIONS)
    mixed = DriftFuse(0.05)
    assert not mixed.blows(0.0, POSITIONS // 2)
    assert not mixed.blows(0.099, POSITIONS // 2)  # the mean of both is .0495
    assert DriftFuse(0.05).blows(0.0501, POSITIONS)


def test_without_a_limit_or_a_probe_it_never_blows():
    assert not DriftFuse(None).blows(100.0, 10 * POSITIONS)
    assert not DriftFuse(0.05).blows(None, 0)


@pytest.mark.parametrize("objective, steps", [(SampledToken(), 4), (TeacherTopKLsm(), 8)])
def test_each_family_has_its_own_age_cap(tables, objective, steps):
    trainer = trainer_of(tables, tiny_model(1), objective=objective, age_cap=None)
    rows = train(trainer)
    assert len(rows) == steps and trainer.stopped == "age_cap" and rows[-1]["staleness"] == steps - 1


def test_the_config_may_raise_the_cap_and_then_every_rollout_is_used(tables):
    trainer = trainer_of(tables, tiny_model(1), age_cap=12)
    assert len(train(trainer)) == 12 and trainer.stopped == "done"


def test_the_fuse_ends_training_before_the_step_that_found_the_drift():
    tables = made_up_round(200, grid=32, longest=60)  # 50 steps of about 4 probed positions
    free = train(trainer_of(tables, tiny_model(1)))
    probed = list(itertools.accumulate(row["probe_tokens"] for row in free))
    at = next(index for index, count in enumerate(probed) if count >= POSITIONS)
    drift = sum((row["drift"] or 0) * row["probe_tokens"] for row in free[:at + 1]) / probed[at]
    trainer = trainer_of(tables, tiny_model(1), drift_fuse=0.99 * drift)
    rows = train(trainer)
    assert trainer.stopped == "drift_fuse" and len(rows) == at + 1 < len(free)
    assert [row["stopped"] for row in rows] == [None] * at + ["drift_fuse"] and rows[-1]["grad_norm"] == 0
    assert rows[-1]["drift"] == free[at]["drift"] and trainer.run_steps == at + 1
    assert len(train(trainer_of(tables, tiny_model(1), drift_fuse=1.01 * max(row["drift"] or 0 for row in free)))) == 50


def test_the_closing_figures_are_of_the_student_after_the_last_step(tables):
    trainer = trainer_of(tables, tiny_model(1), age_cap=None)
    before = trainer.closing()
    assert before["drift"] < 1e-4 and before["topk_left"] == 0
    train(trainer)
    after = trainer.closing()
    assert after["positions"] == before["positions"] > 500
    assert after["teacher_kl"] < before["teacher_kl"] and after["drift"] > before["drift"]
