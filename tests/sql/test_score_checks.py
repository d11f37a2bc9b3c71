"""Each silent teacher is found by its check, and a healthy one by none."""

import math

import made_rounds as made
import numpy as np
import pyarrow as pa
import pytest

from storage import catalog
from storage.checks import CHECKS, check_scores, failed_checks, refuse
from storage.errors import UserError
from storage.objects import open_store
from storage.snapshot import take_snapshot

VOCAB, K, k, COUNT = 40, 8, 4, 96
RESPONSES = {1: 48, 2: 48}


def scored(teacher_shift=0, **changes):
    """Rollouts of a random student and a teacher that mostly agrees with it, scored as the product defines it.

    `teacher_shift` = 1 asks the teacher about the next position instead.
    """
    rng = np.random.default_rng(0)
    logits = 2.0 * rng.normal(size=(COUNT, VOCAB))
    student = log_softmax(logits)
    ids = np.array([rng.choice(VOCAB, p=np.exp(row)) for row in student])
    teacher = log_softmax(np.roll(logits, -teacher_shift, axis=0) + 0.3 * rng.normal(size=(COUNT, VOCAB)))
    at = np.arange(COUNT)
    teacher_ids, student_ids = np.argsort(-teacher)[:, :K], np.argsort(-student)[:, :k]
    responses = {1: ids[:48].tolist(), 2: ids[48:].tolist()}
    columns = {
        "student_log_prob": student[at, ids], "rollout_log_prob": student[at, ids],
        "sampling_log_prob": student[at, ids], "teacher_log_prob": teacher[at, ids],
        "teacher_rank": 1 + (teacher > teacher[at, ids][:, None]).sum(1),
        "teacher_entropy": entropy(teacher), "student_entropy": entropy(student),
        "teacher_log_tail": tail(teacher, teacher_ids), "student_log_tail": tail(student, teacher_ids),
        "teacher_topk_ids": teacher_ids, "teacher_topk_log_probs": snap(np.take_along_axis(teacher, teacher_ids, 1)),
        "student_topk_ids": student_ids, "student_topk_log_probs": snap(np.take_along_axis(student, student_ids, 1)),
        "teacher_log_probs_at_student_topk": snap(np.take_along_axis(teacher, student_ids, 1)),
    }
    return made.rollouts(responses), made.tokens(responses, **{name: list(value) for name, value in
                                                               (columns | changes).items()})


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def entropy(log_probs):
    return -(np.exp(log_probs) * log_probs).sum(-1)


def tail(log_probs, ids):
    return np.log1p(-np.exp(np.take_along_axis(log_probs, ids, 1)).sum(-1))


def snap(log_probs):
    return np.round(log_probs * 16) / 16


def failing(rollouts, tokens):
    return [failure.check for failure in check_scores(rollouts, tokens)]


def test_a_healthy_teacher_passes_every_check():
    assert failing(*scored()) == []


def test_zeros_are_no_certainty():
    assert "all_zeros" in failing(*scored(teacher_log_prob=np.zeros(COUNT)))


def test_a_single_missing_value_written_as_zero_is_found():
    rollouts, tokens = scored()
    values = tokens["teacher_log_prob"].to_pylist()
    values[5] = 0.0
    [failure] = [each for each in check_scores(*scored(teacher_log_prob=values)) if each.check == "all_zeros"]
    assert (failure.tokens, failure.round) == (1, 0)
    assert failure.detail == "teacher_log_prob is 0 on 1 of 96 tokens: missing values, not a certain teacher"


def test_a_uniform_teacher_is_found():
    flat = np.full((COUNT, K), snap(-math.log(VOCAB)))
    found = failing(*scored(teacher_log_prob=np.full(COUNT, -math.log(VOCAB)), teacher_topk_log_probs=flat,
                            teacher_entropy=np.full(COUNT, math.log(VOCAB))))
    assert {"uniform", "constant"} <= set(found)


def test_one_number_for_all_tokens_is_found():
    assert "constant" in failing(*scored(teacher_log_prob=np.full(COUNT, -1.5)))


@pytest.mark.parametrize("column", ["teacher_log_prob", "student_log_prob", "teacher_entropy", "student_log_tail",
                                    "teacher_topk_log_probs", "teacher_log_probs_at_student_topk"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_number_that_is_not_finite_is_found(column, value):
    _, tokens = scored()
    values = np.array(tokens[column].to_pylist())
    values[17, ...] = value
    assert "not_finite" in failing(*scored(**{column: values}))


def test_an_empty_tail_is_healthy():
    rollouts, tokens = scored(student_log_tail=np.full(COUNT, -math.inf))
    assert failing(rollouts, tokens) == []


@pytest.mark.parametrize("column", ["teacher_log_prob", "rollout_log_prob", "teacher_log_tail"])
def test_a_probability_above_one_is_found(column):
    _, tokens = scored()
    values = tokens[column].to_pylist()
    values[3] = 0.001
    assert "positive_log_prob" in failing(*scored(**{column: values}))


def test_a_log_prob_of_the_neighbouring_row_is_found():
    _, tokens = scored()
    assert "own_entry" in failing(*scored(teacher_log_prob=np.roll(tokens["teacher_log_prob"].to_numpy(), 1)))


@pytest.mark.parametrize("shift,word", [(1, "next"), (-1, "previous")])
def test_a_teacher_shifted_by_one_is_found(shift, word):
    """All of its columns agree with each other; only what it predicts gives it away."""
    [failure] = check_scores(*scored(teacher_shift=shift))
    assert failure.check == "shifted_by_one" and f"the {word} token" in failure.detail


def test_a_top_k_that_does_not_add_up_is_found():
    assert "topk_mass" in failing(*scored(teacher_log_tail=np.full(COUNT, -0.01)))


def test_missing_doubled_and_foreign_rows_are_found():
    rollouts, tokens = scored()
    assert failing(rollouts, tokens.slice(0, 90)) == ["row_count"]
    assert "row_count" in failing(rollouts, pa.concat_tables([tokens, tokens.slice(0, 1)]))
    assert failing(rollouts.slice(0, 1), tokens) == ["row_count"]


def test_scores_of_other_tokens_are_found():
    rollouts, tokens = scored()
    ids = tokens["token_id"].to_pylist()
    other = made.rollouts({1: [(token + 1) % VOCAB for token in ids[:48]], 2: ids[48:]})
    assert failing(other, tokens) == ["wrong_token"]


def test_the_refusal_is_one_line_that_names_round_and_check():
    rollouts, tokens = scored(teacher_log_prob=np.zeros(COUNT))
    line = r"^scores of round 4 of night fail the check all_zeros: .* \(and .* more checks?\)"
    with pytest.raises(UserError, match=line):
        refuse(check_scores(rollouts, tokens, run="night", number=4))
    refuse(check_scores(*scored(), run="night", number=4))


def test_a_catalog_can_be_asked_for_named_checks(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    made.start_run(store, tmp_path)
    made.begin_round(store, "made", 0, [scored(), scored(teacher_log_prob=np.zeros(COUNT))])
    connection = catalog.connect(store, take_snapshot(store, in_progress=True))
    assert [failure.check for failure in failed_checks(connection, ["own_entry"])] == ["own_entry"]
    assert set(CHECKS) > {failure.check for failure in failed_checks(connection)} >= {"all_zeros", "row_count"}
