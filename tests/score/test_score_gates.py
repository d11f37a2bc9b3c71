"""Each gate stops a shard whose scores it was made for, and none stops a teacher that is merely bad or merely sure."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.config.model import Score
from pipeline.score.gates import check_scores
from pipeline.score.scorer import score_rollouts
from storage import schemas
from storage.errors import IntegrityError, UserError
from tests.score.dense_reference import as_table, make_rollouts
from tests.score.families import tiny

V, K = 300, 8
ROLLOUTS = make_rollouts([(3, 30)] * 6, V)
SETTINGS = Score(teacher_top_k=K, student_top_k=4)


def written_tokens() -> list[tuple[dict, int]]:
    ordered = sorted(ROLLOUTS, key=lambda each: (each["prompt_id"], each["rollout_id"]))
    return [(each, position) for each in ordered for turn in each["turns"]
            for position in range(turn["start"], turn["end"])]


def scores(shift: int = 0, **changed: np.ndarray) -> pa.Table:
    """Scores of a teacher that is sure of the token `shift` places on; `changed` replaces columns."""
    where = written_tokens()
    count, generator = len(where), np.random.default_rng(0)
    token_N = np.array([each["response_tokens"][position] for each, position in where], np.int32)
    ids_NK = (np.roll(token_N, -shift)[:, None] + np.arange(K, dtype=np.int32)) % V
    noise_N = generator.uniform(0, 0.2, count).astype(np.float32)
    log_probs_NK = np.repeat(np.float32([[-0.5, -2, -3, -4, -5, -6, -7, -8]]), count, axis=0)
    columns = {
        "rollout_id": [each["rollout_id"] for each, _ in where], "prompt_id": [each["prompt_id"] for each, _ in where],
        "task": ["math"] * count, "position": np.array([position for _, position in where], np.int32),
        "token_id": token_N, "teacher_rank": np.ones(count, np.int32), "teacher_topk_ids": ids_NK,
        "teacher_topk_log_probs": log_probs_NK, "student_topk_ids": ids_NK[:, :4],
        "student_topk_log_probs": log_probs_NK[:, :4], "teacher_log_probs_at_student_topk": log_probs_NK[:, :4],
        "reused_from": [None] * count, **{name: -0.4 - noise_N for name in (
            "rollout_log_prob", "sampling_log_prob", "student_log_prob", "teacher_log_prob")},
        "student_entropy": noise_N, "teacher_entropy": noise_N, "teacher_log_tail": -9 - noise_N,
        "student_log_tail": -9 - noise_N} | changed
    schema = schemas.tokens(schemas.TopK(K, 4))
    arrays = [pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(columns[field.name])), type=field.type)
              if pa.types.is_fixed_size_list(field.type) else pa.array(columns[field.name], field.type)
              for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def filled(value: float) -> np.ndarray:
    return np.full(len(written_tokens()), value, np.float32)


def one_bad(value: float) -> np.ndarray:
    values = filled(-1.0) - np.random.default_rng(1).uniform(0, 0.1, len(written_tokens())).astype(np.float32)
    values[3] = value
    return values


def test_sound_scores_pass():
    check_scores(scores(), as_table(ROLLOUTS), V)


@pytest.mark.parametrize("changed, message", [
    ({"teacher_log_prob": filled(0.0)}, "teacher_log_prob is 0 .probability 1. on all"),
    ({"teacher_log_prob": filled(-math.log(V))}, "-ln 300 on all"),
    ({"teacher_log_prob": filled(-3.0)}, "teacher_log_prob is -3 on all"),
    ({"teacher_log_prob": one_bad(math.nan)}, "teacher_log_prob is NaN or infinite on 1 of 174 tokens"),
    ({"teacher_log_prob": one_bad(-math.inf)}, "teacher_log_prob is NaN or infinite on 1 of 174 tokens"),
    ({"teacher_log_prob": one_bad(0.5)}, "teacher_log_prob is 0.5, a probability above 1, on 1 of 174 tokens"),
    ({"student_log_prob": one_bad(math.nan)}, "student_log_prob is NaN"),
    ({"teacher_log_tail": one_bad(math.nan)}, "teacher_log_tail is NaN"),
    ({"teacher_topk_log_probs": np.full((174, K), np.nan, np.float32)}, "teacher_topk_log_probs is NaN"),
])
def test_a_silent_teacher_is_a_users_error_of_one_line(changed, message):
    with pytest.raises(UserError, match=message) as caught:
        check_scores(scores(**changed), as_table(ROLLOUTS), V)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shift, neighbour", [(1, "next"), (-1, "previous")])
def test_scores_that_fit_the_neighbouring_token_are_refused(shift, neighbour):
    with pytest.raises(UserError, match=f"shifted, they fit the {neighbour} token"):
        check_scores(scores(shift), as_table(ROLLOUTS), V)


def test_scores_of_fewer_or_more_tokens_are_refused():
    with pytest.raises(IntegrityError, match="wrong length: 174 scores for 147 tokens"):
        check_scores(scores(), as_table(ROLLOUTS[:5]), V)


def test_a_student_that_did_not_write_the_rollouts_is_refused():
    with pytest.raises(IntegrityError, match="did not write these rollouts"):
        check_scores(scores(student_log_prob=filled(-4.0)), as_table(ROLLOUTS), V)


def test_an_empty_tail_is_no_defect():
    check_scores(scores(teacher_log_tail=filled(-math.inf)), as_table(ROLLOUTS), V)


def scored_by(teacher) -> pa.Table:
    """Scores of a real teacher over rollouts whose engine agreed with the student."""
    student = tiny("qwen2-untied", vocabulary=V, seed=1)
    table = score_rollouts(as_table(ROLLOUTS), student, teacher, V, SETTINGS)
    place = table.schema.get_field_index("rollout_log_prob")
    return table.set_column(place, table.schema.field(place), table["student_log_prob"])


def test_a_random_teacher_that_knows_nothing_of_the_student_passes():
    check_scores(scored_by(tiny("qwen2-untied", vocabulary=V, seed=2)), as_table(ROLLOUTS), V)


@pytest.mark.parametrize("value, message", [(0.0, "prefers no token to another"), (math.nan, "NaN or infinite")])
def test_a_teacher_whose_head_was_never_loaded_is_refused(value, message):
    teacher = tiny("qwen2-untied", vocabulary=V, seed=2)
    with torch.no_grad():
        teacher.lm_head.weight.fill_(value)
    with pytest.raises(UserError, match=message):
        check_scores(scored_by(teacher), as_table(ROLLOUTS), V)
