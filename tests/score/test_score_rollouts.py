import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.config.model import Score
from pipeline.score.scorer import score_rollouts
from storage import schemas
from storage.codec import encode
from storage.errors import IntegrityError, UserError
from tests.score.dense_reference import as_table, dense_scores, make_rollouts
from tests.score.families import FAMILIES, tiny

LENGTHS = [(5, 9), (12, 20), (3, 1), (7, 14), (30, 2), (4, 26), (9, 0)]
SCALARS = ("teacher_log_prob", "student_log_prob", "teacher_entropy", "student_entropy", "teacher_log_tail",
           "student_log_tail")
LISTS = ("teacher_topk_log_probs", "student_topk_log_probs", "teacher_log_probs_at_student_topk",
         "student_log_probs_at_teacher_topk")


def settings(**changes) -> Score:
    return Score(**{"teacher_top_k": 8, "student_top_k": 5, "student_log_probs_at_teacher_topk": True,
                    "batch_tokens": 64, "head_rows": 7} | changes)


def assert_agree(table, expected: list[dict], *, scalars: float, lists: float, ids: bool = True):
    found = table.to_pylist()
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        for name in ("rollout_id", "position", "token_id") + (("teacher_rank",) if ids else ()):
            assert ours[name] == theirs[name], name
        for name in SCALARS:
            assert ours[name] == pytest.approx(theirs[name], abs=scalars), name
        for name in ("teacher_topk_ids", "student_topk_ids") if ids else ():
            assert ours[name] == theirs[name], name
        for name in LISTS if ids else LISTS[:2]:  # gathers at other ids are other numbers
            assert ours[name] == pytest.approx(theirs[name], abs=lists), name


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_a_dense_float64_reference(family):
    student, teacher = tiny(family, vocabulary=300, seed=1), tiny(family, vocabulary=300, seed=2)
    rollouts = make_rollouts(LENGTHS, 300)
    table = score_rollouts(as_table(rollouts), student, teacher, 300, settings())
    expected = dense_scores(rollouts, student.double(), teacher.double(), 300, 8, 5)
    assert_agree(table, expected, scalars=2e-5, lists=1 / 64 + 2e-5)


@pytest.mark.parametrize("K, k", [(1, 1), (200, 200), (129, 3)])
def test_any_width_from_one_to_the_whole_vocabulary_is_exact(K, k):
    student, teacher = tiny("qwen2-tied", vocabulary=200, seed=1), tiny("llama-untied", vocabulary=200, seed=2)
    rollouts = make_rollouts(LENGTHS, 200)
    table = score_rollouts(as_table(rollouts), student, teacher, 200, settings(teacher_top_k=K, student_top_k=k))
    expected = dense_scores(rollouts, student.double(), teacher.double(), 200, K, k)
    assert_agree(table, expected, scalars=2e-5, lists=1 / 64 + 2e-5)
    assert (K == 200) == all(row["teacher_log_tail"] == -torch.inf for row in table.to_pylist())


def test_one_model_on_both_sides_says_the_same_twice():
    model, table = tiny("qwen2-tied", vocabulary=200, seed=1), as_table(make_rollouts(LENGTHS, 200))
    found = score_rollouts(table, model, model, 200, settings(teacher_top_k=5, head_rows=64))
    other = score_rollouts(table, model, tiny("qwen2-tied", vocabulary=200, seed=1), 200,
                           settings(teacher_top_k=5, head_rows=64))
    for name in ("log_prob", "entropy", "log_tail", "topk_ids", "topk_log_probs"):
        assert found[f"teacher_{name}"].to_pylist() == found[f"student_{name}"].to_pylist(), name
    assert found.equals(other)


def test_padded_rows_of_either_head_are_cut_off():
    student, teacher = tiny("qwen2-tied", vocabulary=320, seed=1), tiny("qwen2-tied", vocabulary=384, seed=2)
    rollouts = make_rollouts(LENGTHS, 261)
    table = score_rollouts(as_table(rollouts), student, teacher, 261, settings())
    assert max(max(row["teacher_topk_ids"] + row["student_topk_ids"]) for row in table.to_pylist()) < 261
    assert_agree(table, dense_scores(rollouts, student.double(), teacher.double(), 261, 8, 5), scalars=2e-5,
                 lists=1 / 64 + 2e-5)


def test_bfloat16_models_give_their_own_logits_statistics_in_float32():
    student, teacher = (tiny("qwen2-tied", vocabulary=300, seed=seed, dtype=torch.bfloat16) for seed in (1, 2))
    rollouts = make_rollouts(LENGTHS, 300)
    table = score_rollouts(as_table(rollouts), student, teacher, 300, settings())
    assert_agree(table, dense_scores(rollouts, student, teacher, 300, 8, 5), scalars=0.1, lists=0.1, ids=False)


def test_equal_logits_are_listed_by_lower_id():
    student, teacher = (tiny("llama-untied", vocabulary=300, seed=seed) for seed in (1, 2))
    for model in (student, teacher):
        with torch.no_grad():
            model.lm_head.weight[150:300] = model.lm_head.weight[0:150]
    rollouts = make_rollouts(LENGTHS, 300)
    for row in score_rollouts(as_table(rollouts), student, teacher, 300, settings()).to_pylist():
        for ids in (row["teacher_topk_ids"], row["student_topk_ids"][:4]):
            assert [each + 150 for each in ids[0::2]] == ids[1::2]


def test_neither_batches_nor_chunks_nor_the_order_of_rollouts_change_values():
    student, teacher = tiny("qwen2-tied", vocabulary=300, seed=1), tiny("qwen2-tied", vocabulary=300, seed=2)
    table = as_table(make_rollouts(LENGTHS, 300))
    one = score_rollouts(table, student, teacher, 300, settings(batch_tokens=1, head_rows=1)).to_pylist()
    other = score_rollouts(table.take(list(range(len(table)))[::-1]), student, teacher, 300,
                           settings(batch_tokens=4096, head_rows=4096))
    assert_agree(other, one, scalars=1e-5, lists=1 / 32)


def test_the_same_shard_gives_the_same_bytes():
    student, teacher = tiny("qwen2-tied", vocabulary=300, seed=1), tiny("qwen2-tied", vocabulary=300, seed=2)
    table = as_table(make_rollouts(LENGTHS, 300))
    first, second = (encode(score_rollouts(table, student, teacher, 300, settings())) for _ in range(2))
    assert first == second


def test_the_table_has_the_public_schema_and_the_engines_log_probs_at_the_rows():
    student = tiny("qwen2-tied", vocabulary=300, seed=1)
    table = score_rollouts(as_table(make_rollouts(LENGTHS, 300)), student, student, 300,
                           settings(student_log_probs_at_teacher_topk=False))
    assert table.schema.equals(schemas.tokens(schemas.TopK(8, 5)), check_metadata=True)
    table.validate(full=True)
    for row in table.to_pylist():
        assert row["rollout_log_prob"] == -0.5 - row["position"]
        assert row["sampling_log_prob"] == -0.25 - row["position"]
        assert row["reused_from"] is None and row["task"] == "math"


def test_tokens_of_an_environment_have_no_row_but_are_read():
    student = tiny("qwen2-tied", vocabulary=300, seed=1)
    rollouts = make_rollouts([(4, 9)] * 3, 300)
    positions = [row["position"] for row in score_rollouts(as_table(rollouts[2:]), student, student, 300,
                                                           settings()).to_pylist()]
    assert positions == [0, 1, 5, 6, 7, 8]


def test_top_k_log_probs_lie_on_the_grid():
    student, teacher = tiny("qwen2-tied", vocabulary=300, seed=1), tiny("qwen2-tied", vocabulary=300, seed=2)
    table = score_rollouts(as_table(make_rollouts(LENGTHS, 300)), student, teacher, 300, settings(grid=16))
    assert all(float(value * 16).is_integer() for row in table.to_pylist() for name in LISTS for value in row[name])


class LargestTensor(TorchDispatchMode):
    """Largest number of elements that any operation gave back."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


def test_no_tensor_ever_has_more_than_a_chunk_of_rows_by_the_vocabulary():
    student, teacher = (tiny("qwen2-tied", vocabulary=20_000, seed=seed, hidden=8) for seed in (1, 2))
    table = as_table(make_rollouts([(6, 40)] * 8, 20_000))
    with LargestTensor() as mode:
        rows = score_rollouts(table, student, teacher, 20_000, settings(head_rows=16, batch_tokens=4096)).num_rows
    assert rows > 300
    assert 16 * 20_000 <= mode.largest <= 16 * 20_096


def test_more_rollouts_are_more_batches_of_the_same_size_and_no_larger_tensor():
    student, teacher = (tiny("qwen2-tied", vocabulary=300, seed=seed) for seed in (1, 2))
    largest = []
    for count in (8, 64):
        with LargestTensor() as mode:
            score_rollouts(as_table(make_rollouts([(6, 40)] * count, 300)), student, teacher, 300, settings())
        largest.append(mode.largest)
    assert largest[0] == largest[1]


def test_the_same_scorer_is_exact_at_a_vocabulary_of_151936():
    student, teacher = (tiny("qwen2-tied", vocabulary=151_936, seed=seed, hidden=896, layers=1, sharpness=2.0)
                        for seed in (1, 2))
    rollouts = make_rollouts([(4, 6), (3, 5)], 151_936)
    table = score_rollouts(as_table(rollouts), student, teacher, 151_936, settings(teacher_top_k=32, student_top_k=16))
    assert_agree(table, dense_scores(rollouts, student, teacher, 151_936, 32, 16), scalars=5e-5, lists=1 / 64 + 5e-5)


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_k_beyond_the_shared_vocabulary_is_a_users_error(side):
    model = tiny("qwen2-tied", vocabulary=300, seed=1)
    with pytest.raises(UserError, match=f"score.{side}_top_k = 262 is larger than the 261 tokens"):
        score_rollouts(as_table(make_rollouts(LENGTHS, 261)), model, model, 261, settings(**{f"{side}_top_k": 262}))


def test_a_token_that_only_the_student_has_is_a_users_error():
    model = tiny("qwen2-tied", vocabulary=300, seed=1)
    with pytest.raises(UserError, match="share only ids below 100"):
        score_rollouts(as_table(make_rollouts(LENGTHS, 300)), model, model, 100, settings())


@pytest.mark.parametrize("damage", [
    {"rollout_log_probs": [-1.0]}, {"sampling_log_probs": []}, {"turns": [{"start": 0, "end": 99}]},
    {"turns": [{"start": 2, "end": 4}, {"start": 3, "end": 5}]}, {"turns": [{"start": 3, "end": 2}]},
    {"turns": [{"start": -1, "end": 2}]}, {"prompt_tokens": []}])
def test_rollouts_whose_lists_do_not_fit_each_other_are_refused(damage):
    model = tiny("qwen2-tied", vocabulary=300, seed=1)
    rollouts = make_rollouts(LENGTHS, 300)
    with pytest.raises(IntegrityError, match=f"rollout {rollouts[1]['rollout_id']}: {next(iter(damage))}"):
        score_rollouts(as_table([rollouts[0], rollouts[1] | damage, rollouts[2]]), model, model, 300, settings())


def test_a_shard_without_a_single_token_gives_an_empty_table():
    model = tiny("qwen2-tied", vocabulary=300, seed=1)
    table = score_rollouts(as_table(make_rollouts([(4, 0), (5, 0)], 300)), model, model, 300, settings())
    assert table.num_rows == 0 and "teacher_topk_ids" in table.column_names


def test_progress_counts_rows_up_to_all_of_them():
    model, seen = tiny("qwen2-tied", vocabulary=300, seed=1), []
    table = score_rollouts(as_table(make_rollouts(LENGTHS, 300)), model, model, 300, settings(),
                           lambda *event: seen.append(event))
    assert seen[-1] == ("score", table.num_rows, table.num_rows)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
