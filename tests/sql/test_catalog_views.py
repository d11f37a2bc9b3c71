"""The public views: their columns are frozen, and their answers are those computed by hand."""

import math

import made_rounds as made
import pytest

from storage import catalog, sqlfiles
from storage.objects import open_store
from storage.snapshot import take_snapshot

LN2 = math.log(2)
RESPONSES = {1: [5, 6, 7], 2: [5, 5]}
TEACHER, STUDENT = [-1.0, -2.0, -3.0, -0.5, -0.25], [-0.5] * 5

PLACE = ["run", "round"]
ROLLOUTS = PLACE + [
    "rollout_id", "prompt_id", "sample", "task", "data_source", "messages", "ground_truth", "prompt_tokens",
    "response_tokens", "response_text", "finish_reason", "turns", "reward", "policy_version", "engine", "sampling",
    "seed", "token_hash", "rollout_log_probs", "sampling_log_probs"]
TOKENS = PLACE + [
    "rollout_id", "prompt_id", "task", "position", "token_id", "rollout_log_prob", "sampling_log_prob",
    "student_log_prob", "student_entropy", "teacher_log_prob", "teacher_rank", "teacher_entropy", "teacher_log_tail",
    "student_log_tail", "teacher_topk_ids", "teacher_topk_log_probs", "student_topk_ids", "student_topk_log_probs",
    "teacher_log_probs_at_student_topk", "student_log_probs_at_teacher_topk", "reused_from", "gap", "teacher_mass",
    "student_mass"]
CLOSING = ["closing_positions", "closing_teacher_kl", "closing_student_entropy", "closing_student_mass",
           "closing_drift", "closing_ess", "closing_topk_left", "closing_opd_reverse_kl"]
OF_ROLLOUTS = ["prompts", "rollouts", "mean_length", "truncation_rate", "repeat_ratio", "accuracy"]
OF_TOKENS = [
    "tokens", "mean_gap", "gap_lower_decile", "positive_reward_share", "reverse_kl", "teacher_entropy",
    "student_entropy", "entropy_gap", "teacher_mass", "student_mass", "not_in_topk_ratio", "overlap_ratio",
    "overlap_mass_student", "overlap_mass_teacher", "overlap_token_advantage", "train_rollout_logprob_abs_diff",
    "rollout_ratio", "rollout_kl", "rollout_k3", "rollout_chi2", "rollout_ess"]
FROZEN = {
    "rollouts": ROLLOUTS,
    "tokens": TOKENS,
    "masked_tokens": TOKENS + ["weight", "reasons"],
    "topk": PLACE + ["rollout_id", "prompt_id", "task", "position", "token_id", "rank", "teacher_topk_id",
                     "teacher_topk_log_prob", "student_log_prob_at_teacher_topk", "student_topk_id",
                     "student_topk_log_prob", "teacher_log_prob_at_student_topk"],
    "steps": PLACE + ["step", "step_in_round", "loss", "learning_rate", "grad_norm", "rollouts", "tokens",
                      "unmasked_tokens", "staleness", "stopped", "drift", "ess", "student_mass", "opd_reverse_kl",
                      "teacher_kl", "student_entropy", "topk_left", "probe_tokens"],
    "trainings": PLACE + ["steps", "run_steps", "stopped"] + CLOSING,
    "continuations": PLACE + ["rollout_id", "prompt_id", "task", "depth", "role", "sample", "model", "response_text",
                              "response_tokens", "finish_reason", "correct", "verdict_reason", "prefix_correct",
                              "seed"],
    "evaluations": PLACE + ["prompt_id", "sample", "task", "data_source", "messages", "model", "role", "response_text",
                            "response_tokens", "finish_reason", "answer", "ground_truth", "correct", "verdict_reason",
                            "seed", "checkpoint"],
    "accuracy": PLACE + ["role", "task", "problems", "samples", "k", "avg_at_k", "avg_at_k_low", "avg_at_k_high",
                         "pass_at_k", "pass_at_k_low", "pass_at_k_high", "truncation_rate"],
    "shards": PLACE + ["stage", "shard", "table_name", "key", "rows", "size_bytes", "sha256", "committed"],
    "timings": PLACE + ["stage", "shard", "seconds", "rows", "rows_per_second", "host", "details"],
    "vocabulary": ["run", "token_id", "token_text"],
    "rounds": [*PLACE, "committed", "manifest_id", "owner", *OF_ROLLOUTS, "reward_auroc", *OF_TOKENS, "masked_share",
               "steps", "loss", "opd_reverse_kl", "drift", "ess", "staleness", "stopped", *CLOSING, "evaluated",
               "avg_at_k", "pass_at_k", "evaluation_truncation_rate", "start_avg_at_k", "teacher_avg_at_k",
               "gap_recovery"],
    "task_metrics": [*PLACE, "task", *OF_ROLLOUTS, "reward_auroc", *OF_TOKENS],
    "position_metrics": [*PLACE, "first_position", "positions", "rollouts", "reward_auroc", *OF_TOKENS],
}


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    store = open_store(tmp_path_factory.mktemp("empty") / "store", create=True)
    return catalog.connect(store, take_snapshot(store))


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory):
    """Round 0 committed and worked out on paper; round 1 in progress, scored and not masked."""
    folder = tmp_path_factory.mktemp("two")
    store = open_store(folder / "store", create=True)
    made.start_run(store, folder)
    scored = made.tokens(
        RESPONSES, teacher_log_prob=TEACHER, student_log_prob=STUDENT, rollout_log_prob=[-0.75] * 5,
        teacher_entropy=[2.0] * 5, student_entropy=[0.5, 0.5, 0.5, 0.5, 3.5], teacher_rank=[1, 2, 4, 5, 900],
        student_topk_ids=[[5, 101], [6, 102], [7, 101], [200, 201], [5, 101]],
        student_topk_log_probs=[[-LN2, -2 * LN2]] * 5, teacher_log_probs_at_student_topk=[[-2 * LN2, -LN2]] * 5,
        student_log_tail=[-LN2] * 5)
    written = made.rollouts(RESPONSES, finish_reason=["stop", "length"], reward=[1.0, None])
    weights = made.mask(scored, [0.0, 1.0, 0.5, 0.0, 1.0], [["a", "b"], [], ["b"], ["b"], []])
    round = made.commit_round(store, folder, "made", 0, [(written, scored)], [weights],
                              made.steps(2, loss=[1.0, 4.0], unmasked_tokens=[2, 1], ess=[0.9, 0.7], drift=[0.0, 0.2]))
    round.note_timing("score", 0, {"seconds": 2.0, "rows": 5, "host": "here", "pid": 7})
    made.begin_round(store, "made", 1, [(made.rollouts({3: [9]}), made.tokens({3: [9]}))])
    return catalog.connect(store, take_snapshot(store, in_progress=True))


def ask(connection, sql, parameters=()):
    return catalog.query(connection, sql, parameters).to_pylist()


@pytest.mark.parametrize("view", FROZEN)
def test_the_columns_of_a_public_view_stay(empty, view):
    assert catalog.query(empty, f"FROM {view}").column_names == FROZEN[view]


def test_every_view_file_is_public_and_frozen():
    assert sorted(FROZEN) == sorted(catalog.VIEWS) == sqlfiles.names("views")


@pytest.mark.parametrize("view", FROZEN)
def test_a_view_over_an_empty_store_has_no_rows(empty, view):
    assert ask(empty, f"SELECT count(*) AS n FROM {view}") == [{"n": 0}]


def test_types_do_not_depend_on_whether_there_are_files(empty, two_rounds):
    for view in FROZEN:
        describe = f"SELECT column_name, column_type FROM (DESCRIBE {view})"
        assert ask(empty, describe) == ask(two_rounds, describe), view


def test_files_without_run_and_round_get_them_from_where_they_lie(two_rounds):
    counts = ask(two_rounds, "SELECT run, round, count(*) AS n FROM tokens GROUP BY ALL ORDER BY ALL")
    assert counts == [{"run": "made", "round": 0, "n": 5}, {"run": "made", "round": 1, "n": 1}]


def test_gap_and_masses_are_derived(two_rounds):
    rows = ask(two_rounds, "SELECT gap, teacher_mass, student_mass FROM tokens WHERE round = 0 ORDER BY rollout_id, "
                           "position")
    assert [row["gap"] for row in rows] == [-0.5, -1.5, -2.5, 0.0, 0.25]
    assert rows[0]["teacher_mass"] == pytest.approx(15 / 16) and rows[0]["student_mass"] == pytest.approx(1 / 2)


def test_a_tiny_mass_is_exact(empty):
    for tail in (-1e-9, -1e-3, -2.0, -40.0, -math.inf):
        [row] = ask(empty, "SELECT mass_inside(?::DOUBLE) AS mass", [tail])
        assert row["mass"] == pytest.approx(-math.expm1(tail), rel=1e-12)


def test_masked_tokens_carry_weight_and_reasons_and_only_masked_rounds(two_rounds):
    rows = ask(two_rounds, "SELECT round, rollout_id, position, weight, reasons FROM masked_tokens ORDER BY ALL")
    assert [(row["rollout_id"], row["position"], row["weight"], row["reasons"]) for row in rows] == [
        (1, 0, 0.0, ["a", "b"]), (1, 1, 1.0, []), (1, 2, 0.5, ["b"]), (2, 0, 0.0, ["b"]), (2, 1, 1.0, [])]


def test_topk_has_one_row_per_position_and_rank(two_rounds):
    rows = ask(two_rounds, "SELECT * FROM topk WHERE round = 0 AND rollout_id = 1 AND position = 1 ORDER BY rank")
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert [row["teacher_topk_id"] for row in rows] == [6, 101, 102, 103]
    assert [row["student_topk_id"] for row in rows] == [6, 102, None, None]
    assert rows[1]["student_topk_log_prob"] == pytest.approx(-2 * LN2)
    assert rows[1]["teacher_log_prob_at_student_topk"] == pytest.approx(-LN2)
    assert {row["student_log_prob_at_teacher_topk"] for row in rows} == {None}


def test_a_round_is_described_as_computed_by_hand(two_rounds):
    """Overlaps of the five positions: 2, 1, 2, 0, 2 of 2; masses .75, .5, .75, 0, .75, the teacher's second being .25.

    Reverse KL 1/2 ln 2 - 1/4 ln 2, the rests being alike.
    Advantage on {5, 101}: p- (2/3, 1/3), q- (1/3, 2/3): (2/3 ln 1/2 + 1/3 ln 2) / 2 = -ln 2 / 6; on one token: 0.
    """
    row = ask(two_rounds, "SELECT * FROM rounds WHERE round = 0")[0]
    expected = {
        "prompts": 1, "rollouts": 2, "tokens": 5, "mean_length": 2.5, "truncation_rate": 0.5, "accuracy": 1.0,
        "mean_gap": -0.85, "gap_lower_decile": -2.1, "positive_reward_share": 0.2, "teacher_entropy": 2.0,
        "student_entropy": 1.1, "entropy_gap": 1.5, "teacher_mass": 15 / 16, "student_mass": 0.5,
        "not_in_topk_ratio": 0.4, "overlap_ratio": 0.7, "overlap_mass_student": 0.55, "overlap_mass_teacher": 0.5,
        "overlap_token_advantage": -LN2 / 6 * 3 / 4, "reverse_kl": LN2 / 4, "repeat_ratio": 0.0,
        "train_rollout_logprob_abs_diff": 0.25, "masked_share": 0.4,
        "steps": 2, "loss": 2.0, "opd_reverse_kl": 0.1, "drift": 0.2, "ess": 0.7, "staleness": 1,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert row["committed"] and len(row["manifest_id"]) == 64


def test_a_round_in_progress_has_the_columns_of_what_is_done(two_rounds):
    row = ask(two_rounds, "SELECT * FROM rounds WHERE round = 1")[0]
    assert (row["committed"], row["manifest_id"], row["tokens"], row["steps"]) == (False, None, 1, 0)
    assert row["masked_share"] is None and row["loss"] is None


def test_shards_and_timings_come_from_the_receipts(two_rounds):
    shards = ask(two_rounds, "SELECT stage, rows, committed FROM shards WHERE round = 0 AND table_name = 'tokens'")
    assert shards == [{"stage": "score", "rows": 5, "committed": True}]
    timing = ask(two_rounds, "SELECT stage, shard, rows_per_second, host, details FROM timings")
    assert timing == [{"stage": "score", "shard": 0, "rows_per_second": 2.5, "host": "here", "details": '{"pid": 7}'}]


def test_a_query_binds_its_values(two_rounds):
    assert ask(two_rounds, "SELECT count(*) AS n FROM tokens WHERE task = $task AND round = $round",
               {"task": "math' OR true --", "round": 0}) == [{"n": 0}]


def test_lists_of_different_widths_live_in_one_view(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    for run, wide in (("narrow", False), ("wide", True)):
        made.start_run(store, tmp_path, run)
        changes = {"teacher_topk_ids": [[9, 1, 2, 3, 4]], "teacher_topk_log_probs": [[-1.0] * 5]} if wide else {}
        made.begin_round(store, run, 0, [(made.rollouts({3: [9]}), made.tokens({3: [9]}, **changes))])
    connection = catalog.connect(store, take_snapshot(store, in_progress=True))
    assert ask(connection, "SELECT run, len(teacher_topk_ids) AS k FROM tokens ORDER BY run") == [
        {"run": "narrow", "k": 4}, {"run": "wide", "k": 5}]
