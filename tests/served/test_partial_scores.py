"""Scores of a teacher that does not say all, in SQL and before the gates: nothing unknown passes for a number."""

import math

import made_rounds as made
import numpy as np
import pyarrow as pa
import pytest

from pipeline.config.partial import UNKNOWN
from pipeline.score.by_vllm.unknown import as_null
from pipeline.score.gates import check_scores
from storage import catalog, schemas
from storage.checks import failed_checks
from storage.errors import UserError
from storage.objects import open_store
from storage.snapshot import take_snapshot
from tests.score.dense_reference import as_table
from tests.score.test_score_gates import ROLLOUTS, V, scores

RESPONSES = {1: [5, 6, 7, 8], 2: [5, 9]}
MASS = 1 - 0.0625
ROLLOUTS_TABLE = as_table(ROLLOUTS)


def partial(table: pa.Table, tails=None, at_student=None) -> pa.Table:
    """`table` as a vLLM teacher gives it: no entropy, some tails, and of the student's list its first entry."""
    count, k = table.num_rows, table["student_topk_ids"].type.list_size
    listed = np.full((count, k), np.nan, np.float32)
    listed[:, 0] = -math.log(2) if at_student is None else at_student
    known = {"teacher_entropy": pa.array(np.full(count, np.nan, np.float32)),
             "teacher_log_tail": table["teacher_log_tail"] if tails is None else pa.array(np.float32(tails)),
             "teacher_log_probs_at_student_topk": pa.FixedSizeListArray.from_arrays(
                 pa.array(listed.reshape(-1)), type=table.schema.field("teacher_log_probs_at_student_topk").type)}
    for name, column in known.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return as_null(table)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Run `whole` was scored by our scorer, `part` the same by vLLM, half of whose tails are too small to be known."""
    folder = tmp_path_factory.mktemp("partial")
    store = open_store(folder / "store", create=True)
    tails = [math.log(0.0625)] * 3 + [np.nan] * 3
    for run, scored in (("whole", made.tokens(RESPONSES)), ("part", partial(made.tokens(RESPONSES), tails))):
        made.start_run(store, folder, run)
        made.commit_round(store, folder, run, 0, [(made.rollouts(RESPONSES), scored)])
    connection = catalog.connect(store, take_snapshot(store, in_progress=True))
    return lambda sql: {row["run"]: row for row in catalog.query(connection, sql).to_pylist()}


def test_metrics_of_what_is_unknown_are_null_and_not_those_of_the_known_tokens(asked):
    for view in ("rounds", "task_metrics"):
        rows = asked(f"SELECT * FROM {view}")
        assert [rows["part"][name] for name in ("teacher_entropy", "entropy_gap", "reverse_kl")] == [None] * 3
        assert None not in [rows["whole"][name] for name in ("teacher_entropy", "entropy_gap", "reverse_kl")]


def test_a_tail_too_small_to_be_known_counts_as_none(asked):
    rows = asked("SELECT run, teacher_mass FROM rounds")
    assert rows["part"]["teacher_mass"] == pytest.approx((3 * MASS + 3) / 6)
    assert rows["whole"]["teacher_mass"] == pytest.approx(MASS)


def test_metrics_of_known_columns_are_those_of_our_scorer(asked):
    names = ("mean_gap", "student_entropy", "student_mass", "not_in_topk_ratio", "overlap_ratio",
             "overlap_mass_student")
    rows = asked(f"SELECT run, {', '.join(names)} FROM rounds")
    assert [rows["part"][name] for name in names] == [rows["whole"][name] for name in names]


def test_unknown_entries_stay_null_where_lists_are_taken_apart(asked):
    rows = asked("SELECT run, count(teacher_log_prob_at_student_topk) AS known FROM topk GROUP BY run")
    assert rows["part"]["known"] == 6 and rows["whole"]["known"] == 12


def checked(folder, scored, responses):
    store = open_store(folder / "store", create=True)
    made.start_run(store, folder)
    made.begin_round(store, "made", 0, [(made.rollouts(responses), scored)])
    connection = catalog.connect(store, take_snapshot(store, in_progress=True))
    return {each.check for each in failed_checks(connection)}


def test_sql_checks_pass_a_partial_teacher_and_find_a_uniform_one(tmp_path):
    for name in ("healthy", "uniform"):
        (tmp_path / name).mkdir()
    responses = {1: list(range(5, 45))}
    healthy = made.tokens(responses, teacher_log_prob=[math.log(0.5) + position % 7 / 1000 for position in range(40)])
    assert not checked(tmp_path / "healthy", partial(healthy), responses)
    flat = [math.log(1 / 64)] * 4
    uniform = made.tokens(responses, teacher_log_prob=flat[:1] * 40, teacher_topk_log_probs=[flat] * 40,
                          teacher_log_tail=[math.log(60 / 64)] * 40)
    assert "uniform" in checked(tmp_path / "uniform", partial(uniform, at_student=flat[0]), responses)


def test_gates_pass_a_teacher_that_does_not_say_all():
    check_scores(partial(scores()), ROLLOUTS_TABLE, V)


def test_gates_still_find_scores_of_the_next_token():
    table = partial(scores(shift=1), tails=np.full(scores().num_rows, np.nan))
    with pytest.raises(UserError, match="shifted"):
        check_scores(table, ROLLOUTS_TABLE, V)


def test_gates_refuse_nan_among_what_is_known():
    table = partial(scores())
    index = table.schema.get_field_index("teacher_log_prob")
    broken = pa.array(np.full(table.num_rows, np.nan, np.float32))
    with pytest.raises(UserError, match="teacher_log_prob is NaN"):
        check_scores(table.set_column(index, table.schema.field(index), broken), ROLLOUTS_TABLE, V)


def test_the_columns_that_may_be_unknown_are_named_once():
    assert UNKNOWN == schemas.UNKNOWN_TO_VLLM
