"""The metrics of rounds, tasks and positions: their answers are those computed by hand, and the same in every view."""

import math

import made_rounds as made
import pytest

from storage import catalog, sqlfiles
from storage.objects import open_store
from storage.snapshot import take_snapshot

LN2 = math.log(2)
RESPONSES = {1: [5, 6, 7, 5, 6, 7], 2: [5, 5, 5, 5, 5], 3: [8, 9], 4: [8], 5: [9]}
"""3-grams: 567 675 756 567, one of four again; 555 three times, two of three again; none in the others."""
GAPS = [-1.0] * 3 + [-3.0] * 3 + [-4.0, -2.0, -4.0, -2.0, -3.0] + [-2.0, -2.0] + [-3.0] + [0.5]
"""Means -2, -3, -2, -3, .5."""
REWARDS = [1.0, 1.0, 0.0, 0.0, None]
TASKS = ["math", "math", "math", "code", "code"]
FACTS = {"steps": 2, "run_steps": 5, "stopped": "drift_fuse",
         "closing": {"positions": 7, "teacher_kl": 0.25, "student_entropy": 1.5, "student_mass": 0.75, "drift": 0.06,
                     "ess": 0.5, "topk_left": 0.125, "opd_reverse_kl": None}}


def round_of(store, folder, run, tasks):
    made.start_run(store, folder, run)
    of_token = [task for task, response in zip(tasks, RESPONSES.values()) for _ in response]
    count = len(of_token)
    scored = made.tokens(RESPONSES, task=of_token, student_log_prob=[-1.0] * count,
                         teacher_log_prob=[gap - 1 for gap in GAPS],
                         student_entropy=[position % 3 / 2 for position in range(count)],
                         rollout_log_prob=[-1.0 - LN2, -1.0 + LN2] * (count // 2) + [-1.0] * (count % 2))
    written = made.rollouts(RESPONSES, task=tasks, reward=REWARDS, prompt_id=[7, 7, 7, 8, 8],
                            finish_reason=["length", "stop", "stop", "length", "stop"])
    stopped = made.steps(3, loss=[1.0, 4.0, 99.0], unmasked_tokens=[2, 1, 8], drift=[0.0, 0.02, 0.06],
                         stopped=[None, None, "drift_fuse"])
    return made.commit_round(store, folder, run, 0, [(written, scored)], step_rows=stopped, train_facts=FACTS)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Run `two` has two tasks, `one` the same tokens as one task; `odd` samples far from its scorer."""
    folder = tmp_path_factory.mktemp("metrics")
    store = open_store(folder / "store", create=True)
    round_of(store, folder, "two", TASKS)
    round_of(store, folder, "one", ["math"] * 5)
    made.start_run(store, folder, "odd")
    far = {1: [5], 2: [6], 3: [7]}
    scored = made.tokens(far, student_log_prob=[-1.0] * 3, rollout_log_prob=[-31.0, -1.0, -1.0])
    made.begin_round(store, "odd", 0, [(made.rollouts(far), scored)])
    first = take_snapshot(store, "two").manifest("two", 0).id
    taken = {1: [5, 6], 2: [7], 3: [8], 4: [9]}
    reused = made.tokens(taken, reused_from=[first, first, "f" * 64, None, first])
    made.begin_round(store, "two", 1, [(made.rollouts(taken), reused)])
    connection = catalog.connect(store, take_snapshot(store, in_progress=True))
    return lambda sql: catalog.query(connection, sql).to_pylist()


def only(rows):
    [row] = rows
    return row


def test_repetition_is_the_share_of_3_grams_that_occurred_before(asked):
    """(1/4 + 2/3) / 2: responses below three tokens have none and do not count."""
    assert only(asked("SELECT repeat_ratio FROM rounds WHERE run = 'two' AND round = 0")) == {
        "repeat_ratio": pytest.approx(11 / 24)}


@pytest.mark.parametrize("ids, ratio", [("[]", None), ("[1, 2]", None), ("[1, 2, 3]", 0.0), ("[1, 2, 1, 2, 1]", 1 / 3),
                                        ("[1, 1, 1, 1]", 0.5), ("[1, 2, 3, 1, 2, 4]", 0.0), ("NULL", None)])
def test_the_repetition_of_one_response(asked, ids, ratio):
    found = only(asked(f"SELECT repeat_ratio({ids}::INTEGER[]) AS found"))["found"]
    assert found == (ratio if ratio is None else pytest.approx(ratio))


def test_the_auroc_counts_pairs_of_right_and_wrong_and_half_of_a_tie(asked):
    """Right -2 and -3, wrong -2 and -3: 1/2 and 1 for the first, 0 and 1/2 for the second: 2 of 4 pairs."""
    assert only(asked("SELECT reward_auroc FROM rounds WHERE run = 'two' AND round = 0")) == {"reward_auroc": 0.5}


def test_the_auroc_of_a_task_is_over_its_own_rollouts_and_null_with_one_class(asked):
    """math: right -2 and -3 against wrong -2: (1/2 + 0) / 2. code: a wrong one and one without a reference."""
    rows = asked("SELECT task, reward_auroc FROM task_metrics WHERE run = 'two' AND round = 0 ORDER BY task")
    assert [tuple(row.values()) for row in rows] == [("code", None), ("math", 0.25)]


def test_ratios_are_of_the_scorers_and_the_engines_probability(asked):
    """Ratios 2 and 1/2, seven pairs, and a 1: n 15. k3 of a pair is 1 - ln 2 + ln 2 - 1/2, and 0 of the last."""
    row = only(asked("SELECT rollout_ratio, rollout_kl, rollout_k3, rollout_chi2, rollout_ess FROM rounds "
                     "WHERE run = 'two' AND round = 0"))
    ratio, square = (7 * 2.5 + 1) / 15, (7 * 4.25 + 1) / 15
    assert row == pytest.approx({"rollout_ratio": ratio, "rollout_kl": 0.0, "rollout_k3": 7 / 2 / 15,
                                 "rollout_chi2": square - 1, "rollout_ess": ratio ** 2 / square}, abs=1e-6)


def test_k3_and_kl_of_a_scorer_that_doubles_the_engines_probability():
    """Every ratio is 2: k3 2 - 1 - ln 2, KL of the engine's density from the scorer's -ln 2."""
    doubled = made.tokens({1: [5, 6]}, student_log_prob=[-1.0] * 2, rollout_log_prob=[-1.0 - LN2] * 2)
    connection = catalog.connect_tables({"tokens": doubled})
    row = only(catalog.run_select(connection, "SELECT rollout_k3, rollout_kl FROM token_metrics(run)").to_pylist())
    assert row == pytest.approx({"rollout_k3": 1 - LN2, "rollout_kl": -LN2}, abs=1e-6)


def test_a_ratio_is_clamped_at_e_to_20_and_its_logarithm_is_not(asked):
    row = only(asked("SELECT rollout_ratio, rollout_kl, rollout_ess FROM rounds WHERE run = 'odd'"))
    assert row == pytest.approx({"rollout_ratio": (math.exp(20) + 2) / 3, "rollout_kl": -10.0, "rollout_ess": 1 / 3},
                                rel=1e-6)


def test_what_train_receipts_say_is_in_trainings_and_rounds(asked):
    row = only(asked("FROM trainings WHERE run = 'two'"))
    assert (row["steps"], row["run_steps"], row["stopped"], row["closing_positions"]) == (2, 5, "drift_fuse", 7)
    assert (row["closing_teacher_kl"], row["closing_topk_left"], row["closing_opd_reverse_kl"]) == (0.25, 0.125, None)
    there = only(asked("FROM rounds WHERE run = 'two' AND round = 0"))
    shared = [name for name in row if name.startswith("closing_")] + ["stopped"]
    assert {name: there[name] for name in shared} == {name: row[name] for name in shared}


def test_a_step_that_was_not_applied_counts_in_drift_and_not_in_steps_and_loss(asked):
    """(1 x 2 + 4 x 1) / 3 over the two steps that were applied."""
    row = only(asked("SELECT steps, loss, drift FROM rounds WHERE run = 'two' AND round = 0"))
    assert row == {"steps": 2, "loss": 2.0, "drift": 0.06}


def test_receipts_without_facts_are_null(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    made.start_run(store, tmp_path)
    parts = [(made.rollouts({1: [5]}), made.tokens({1: [5]}))]
    made.commit_round(store, tmp_path, "made", 0, parts)
    made.commit_round(store, tmp_path, "made", 1, parts, train_facts={"steps": 1, "closing": None})
    made.begin_round(store, "made", 2, parts)
    connection = catalog.connect(store, take_snapshot(store, in_progress=True))
    rows = catalog.query(connection, "SELECT round, steps, stopped, closing_ess FROM trainings ORDER BY round")
    assert [tuple(row.values()) for row in rows.to_pylist()] == [(0, None, None, None), (1, 1, None, None)]


# --- by task and by position ---


def test_a_round_of_one_task_is_its_task(asked):
    task, round = (only(asked(f"FROM {view} WHERE run = 'one'")) for view in ("task_metrics", "rounds"))
    shared = set(task) - {"task"}
    assert shared <= set(round) and {name: round[name] for name in shared} == {name: task[name] for name in shared}
    assert not [name for name in shared if task[name] is None]


def test_tasks_divide_a_round(asked):
    """math has 13 tokens of three rollouts, code 2 of two; lengths (6 + 5 + 2) / 3 and 1."""
    rows = asked("SELECT task, prompts, rollouts, tokens, mean_length, truncation_rate, accuracy, mean_gap "
                 "FROM task_metrics WHERE run = 'two' AND round = 0 ORDER BY task")
    assert [tuple(row.values()) for row in rows] == [
        ("code", 1, 2, 2, 1.0, 0.5, 0.0, -1.25), ("math", 1, 3, 13, 13 / 3, 1 / 3, 2 / 3, pytest.approx(-31 / 13))]


def test_positions_divide_a_round(asked):
    """Six positions: buckets of one. Position 0: gaps -1 -4 -2 -3 .5, right -1 and -4, wrong -2 and -3: 2 of 4."""
    rows = asked("SELECT first_position, positions, rollouts, tokens, mean_gap, reward_auroc FROM position_metrics "
                 "WHERE run = 'two' AND round = 0 ORDER BY first_position")
    assert [tuple(row.values()) for row in rows] == [
        (0, 1, 5, 5, -9.5 / 5, 0.5), (1, 1, 3, 3, -5 / 3, 0.75), (2, 1, 2, 2, -2.5, None), (3, 1, 2, 2, -2.5, None),
        (4, 1, 2, 2, -3.0, None), (5, 1, 1, 1, -3.0, None)]


@pytest.mark.parametrize("length, width, buckets", [(31, 1, 31), (32, 1, 32), (33, 2, 17), (200, 8, 25)])
def test_a_round_has_at_most_32_buckets(length, width, buckets):
    connection = catalog.connect_tables({"tokens": made.tokens({1: [5] * length})})
    rows = catalog.run_select(connection, "SELECT part, any_value(positions) AS positions, sum(tokens) AS tokens FROM "
                              "token_metrics(position_bucket(position, positions)) GROUP BY part").to_pylist()
    assert len(rows) == buckets and {row["positions"] for row in rows} == {width}
    assert sum(row["tokens"] for row in rows) == length


def test_every_metric_of_a_bucket_is_that_of_a_round_with_these_tokens_alone(asked):
    """Definitions are shared: the mean over buckets, by tokens, is the round's."""
    [round] = asked("FROM rounds WHERE run = 'two' AND round = 0")
    buckets = asked("FROM position_metrics WHERE run = 'two' AND round = 0")
    means = [name for name in buckets[0] if name in round and name not in (
        "run", "round", "rollouts", "tokens", "reward_auroc", "gap_lower_decile", "rollout_ess")]
    assert len(means) == 18
    for name in means:
        mean = sum(row[name] * row["tokens"] for row in buckets) / round["tokens"]
        assert mean == pytest.approx(round[name]), name


def test_repetition_lies_where_the_3_gram_comes_again(asked):
    """567567: again at 5. 55555: again at 3 and 4, not at 2."""
    rows = asked(sqlfiles.load("reports", "repetition_by_position").text)
    assert [(row["first_position"], row["rollouts"], row["repeat_ratio"]) for row in rows
            if (row["run"], row["round"]) == ("two", 0)] == [(2, 2, 0.0), (3, 2, 0.5), (4, 2, 0.5), (5, 1, 1.0)]


# --- health, and where teacher columns came from ---


def test_health_says_which_figures_hold(asked):
    rows = asked(sqlfiles.load("reports", "health").text)
    found = {(row["run"], row["round"], row["figure"]): row["holds"] for row in rows}
    assert [figure for run, round, figure in found if (run, round) == ("two", 0)] == [
        "rollout_ratio", "rollout_kl", "rollout_ess", "ess", "student_mass"]
    assert [found["two", 0, figure] for figure in ("rollout_ratio", "rollout_kl", "ess", "student_mass")] == [True] * 4
    assert [found["odd", 0, figure] for figure in ("rollout_ratio", "rollout_kl", "rollout_ess", "ess")] == [
        False, False, True, None]


LIMITS = [(math.log(0.51), "rollout_ratio", True), (math.log(0.49), "rollout_ratio", False),
          (math.log(1.99), "rollout_ratio", True), (math.log(2.01), "rollout_ratio", False),
          (-0.099, "rollout_kl", True), (-0.101, "rollout_kl", False), (0.099, "rollout_kl", True),
          (0.101, "rollout_kl", False)]
"""Logarithms of a round's one ratio."""


def test_health_has_its_limits_where_they_are_written(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    for place, (log_ratio, _, _) in enumerate(LIMITS):
        made.start_run(store, tmp_path, f"run{place}")
        scored = made.tokens({1: [5]}, student_log_prob=[-1.0 + log_ratio], rollout_log_prob=[-1.0])
        made.begin_round(store, f"run{place}", 0, [(made.rollouts({1: [5]}), scored)])
    connection = catalog.connect(store, take_snapshot(store, in_progress=True))
    rows = catalog.query(connection, sqlfiles.load("reports", "health").text).to_pylist()
    found = {(row["run"], row["figure"]): row["holds"] for row in rows}
    assert [found[f"run{place}", figure] for place, (_, figure, _) in enumerate(LIMITS)] == [
        holds for _, _, holds in LIMITS]


def test_reused_payloads_are_counted_by_rollout_and_by_source(asked):
    """Two rollouts with two and one tokens from round 0, one from a round that is not here, one computed."""
    rows = asked(sqlfiles.load("reports", "payload_reuse").text)
    row = next(row for row in rows if (row["run"], row["round"]) == ("two", 1))
    assert {name: row[name] for name in row if name not in ("run", "round", "sources")} == {
        "rollouts": 4, "hits": 3, "misses": 1, "hit_share": 0.75, "hit_tokens": 4, "miss_tokens": 1}
    assert [(source["run"], source["round"], source["rollouts"]) for source in row["sources"]] == [
        ("two", 0, 2), (None, None, 1)]
    first = next(row for row in rows if (row["run"], row["round"]) == ("two", 0))
    assert (first["hits"], first["misses"], first["hit_share"], first["sources"]) == (0, 5, 0.0, [])
