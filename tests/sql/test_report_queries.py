"""The saved queries behind `opd report`: their answers are those computed by hand, for one round as for all."""

import math

import made_rounds as made
import pytest

from storage import catalog, sqlfiles
from storage.objects import open_store
from storage.snapshot import take_snapshot

LN2 = math.log(2)
RESPONSES = {10: [7, 8, 7], 11: [8], 12: [8, 9], 13: [9, 9]}
TEACHER = [-1.0, -1.5, -3.0, -9.0, -0.5, -0.25, -0.75, -0.75]
"""Less the student's -.5: gaps -.5 -1 -2.5 | -8.5 | 0 .25 | -.25 -.25; mean by rollout -4/3, -8.5, .125, -.25."""
TOKENIZER = ('{"model": {"type": "BPE", "vocab": {"seven": 7, "eight": 8}}, "decoder": null,'
             ' "added_tokens": [{"id": 101, "content": "<s>"}]}')


@pytest.fixture(scope="module")
def connection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("queries")
    store = open_store(folder / "store", create=True)
    made.start_run(store, folder, tokenizer=TOKENIZER)
    scored = made.tokens(RESPONSES, student_log_prob=[-0.5] * 8, teacher_log_prob=TEACHER,
                         teacher_rank=[1, 2, 3, 40, 1, 1, 1, 1], student_entropy=[0.5] * 8,
                         teacher_topk_ids=[[8, 101, 102, 103]] * 8)
    written = made.rollouts(RESPONSES, finish_reason=["length", "stop", "stop", "stop"], reward=[0, 0, 1, None],
                            response_text=["long", "short", "best", "middle"])
    weights = made.mask(scored, [0.0] + [1.0] * 7, [["first"]] + [[]] * 7)
    graded = [made.graded("student", {1: [True, True], 2: [False, True], 3: [False, False]},
                          verdict_reason=["same", "same", "other", "same", "none", "other"]),
              made.graded("teacher", {1: [True]})]
    round = made.commit_round(store, folder, "made", 0, [(written, scored)], [weights], answers=graded)
    round.note_timing("score", 0, {"seconds": 4.0, "rows": 8, "host": "here"})
    round.note_timing("evaluate", 0, {"seconds": 1.0, "rows": 6, "host": "here"})
    round.note_timing("evaluate", 1, {"seconds": 2.0, "rows": 1, "host": "here"})
    many = {20: [8] * 9, 21: [7] * 40}
    made.begin_round(store, "made", 1, [(made.rollouts(many), made.tokens(many))])
    return catalog.connect(store, take_snapshot(store, in_progress=True))


def report(connection, name, number=0):
    sql = sqlfiles.load("reports", name).text.rstrip().rstrip(";")
    return catalog.query(connection, f"FROM ({sql}) WHERE round = {number}").to_pylist()


def columns(rows, *names):
    return [tuple(row[name] for name in names) for row in rows]


def test_the_gap_along_a_response_has_buckets_that_fit_its_length(connection):
    """Positions 0: -.5 -8.5 0 -.25; 1: -1 .25 -.25; 2: -2.5. The decile of four lies .3 of the way up from -8.5."""
    rows = report(connection, "gap_along_response")
    assert columns(rows, "first_position", "positions", "tokens") == [(0, 1, 4), (1, 1, 3), (2, 1, 1)]
    assert [row["mean_gap"] for row in rows] == pytest.approx([-9.25 / 4, -1 / 3, -2.5])
    assert rows[0]["gap_lower_decile"] == pytest.approx(-8.5 + 0.3 * 8)
    assert {(row["teacher_entropy"], row["student_entropy"]) for row in rows} == {(1.0, 0.5)}
    assert rows[0]["student_mass"] == pytest.approx(15 / 16)
    assert [row["reverse_kl"] for row in rows] == pytest.approx([0.0] * 3)  # made lists of both models are alike
    wide = report(connection, "gap_along_response", 1)  # 40 positions: 20 buckets of two
    assert len(wide) == 20 and columns(wide[:5], "first_position", "positions", "tokens") == [
        (0, 2, 4), (2, 2, 4), (4, 2, 4), (6, 2, 4), (8, 2, 3)]


def test_the_gaps_distribution_keeps_what_lies_beyond_its_ends(connection):
    rows = report(connection, "gap_histogram")
    assert columns(rows, "from_gap", "tokens", "share") == [
        (-8.0, 1, 1 / 8), (-2.5, 1, 1 / 8), (-1.0, 1, 1 / 8), (-0.5, 1, 1 / 8), (-0.25, 2, 1 / 4), (0.0, 1, 1 / 8),
        (0.25, 1, 1 / 8)]
    above = catalog.connect_tables({"tokens": made.tokens({1: [5]}, teacher_log_prob=[-0.5], student_log_prob=[-9.0])})
    assert [row["from_gap"] for row in report(above, "gap_histogram")] == [4.0]


def test_lengths_are_counted_in_tokens(connection):
    """Lengths 1 2 2 3: deciles 1 + .3 and 2 + .7."""
    [row] = report(connection, "lengths_by_round")
    assert row == {"run": "made", "round": 0, "rollouts": 4, "shortest": 1, "lower_decile": pytest.approx(1.3),
                   "median": 2.0, "mean_length": 2.0, "upper_decile": pytest.approx(2.7), "longest": 3, "truncated": 1,
                   "truncation_rate": 0.25}


def test_stages_have_their_seconds_rows_and_bytes_in_the_order_of_the_round(connection):
    rows = report(connection, "timings_by_stage")
    assert columns(rows, "stage", "shards", "seconds", "rows", "rows_per_second") == [
        ("prompts", 1, None, 0, None), ("rollout", 1, None, 4, None), ("score", 1, 4.0, 8, 2.0),
        ("mask", 1, None, 8, None), ("train", 1, None, 1, None), ("evaluate", 2, 3.0, 7, 7 / 3)]
    sizes = catalog.query(connection, "SELECT size_bytes FROM shards WHERE round = 0 AND stage = 'evaluate'")
    assert rows[-1]["size_bytes"] == sum(sizes["size_bytes"].to_pylist()) > 0


def test_the_worst_tokens_of_each_round_are_numbered(connection):
    rows = report(connection, "worst_tokens_by_round")
    assert columns(rows[:3], "place", "rollout_id", "position", "token_text", "gap", "teacher_rank") == [
        (1, 11, 0, "eight", -8.5, 40), (2, 10, 2, "seven", -2.5, 3), (3, 10, 1, "eight", -1.0, 2)]
    assert {row["teacher_first"] for row in rows} == {"eight"}
    assert len(rows) == 8 and rows[4]["token_text"] is None  # token 9 has no text
    assert columns(report(connection, "worst_tokens_by_round", 1), "place", "position") == [
        (each, each - 1) for each in range(1, 10)] + [(10, 0)]


def test_disliked_tokens_are_those_seen_often(connection):
    """In round 1 both models agree: gap 0 on 40 sevens and 9 eights. Round 0 has no token eight times."""
    assert report(connection, "disliked_tokens") == []
    rows = report(connection, "disliked_tokens", 1)
    assert columns(rows, "place", "token_id", "token_text", "tokens", "mean_gap") == [
        (1, 7, "seven", 40, 0.0), (2, 8, "eight", 9, 0.0)]
    assert rows[0]["mean_student_prob"] == pytest.approx(0.5) == rows[0]["mean_teacher_prob"]


def test_the_worst_the_middle_and_the_best_rollout_are_inspected(connection):
    """Means -8.5, -4/3, -.25, .125: the second of four is the middle."""
    rows = report(connection, "inspected_rollouts")
    assert columns(rows, "choice", "rollout_id", "tokens", "lowest_gap", "finish_reason", "response_text") == [
        ("worst", 11, 1, -8.5, "stop", "short"), ("middle", 10, 3, -2.5, "length", "long"),
        ("best", 12, 2, 0.0, "stop", "best")]
    assert [row["reward"] for row in rows] == [0.0, 0.0, 1.0]
    assert [row["mean_gap"] for row in rows] == pytest.approx([-8.5, -4 / 3, 0.125])


@pytest.mark.parametrize("count,choices", [(1, ["worst"]), (2, ["worst", "best"]), (3, ["worst", "middle", "best"])])
def test_few_rollouts_are_not_inspected_twice(count, choices):
    responses = {each: [5] for each in range(count)}
    tables = {"tokens": made.tokens(responses), "rollouts": made.rollouts(responses)}
    few = catalog.connect_tables(tables)
    assert columns(report(few, "inspected_rollouts"), "choice", "rollout_id") == [
        (choice, each) for each, choice in enumerate(choices)]


def test_inspected_tokens_come_with_the_teachers_first_choices_and_the_mask(connection):
    rows = report(connection, "inspected_tokens")
    assert columns(rows, "choice", "rollout_id", "position", "token_text", "gap", "weight", "reasons") == [
        ("worst", 11, 0, "eight", -8.5, 1.0, []), ("middle", 10, 0, "seven", -0.5, 0.0, ["first"]),
        ("middle", 10, 1, "eight", -1.0, 1.0, []), ("middle", 10, 2, "seven", -2.5, 1.0, []),
        ("best", 12, 0, "eight", 0.0, 1.0, []), ("best", 12, 1, None, 0.25, 1.0, [])]
    first = rows[0]["teacher_first"]
    assert [(each["token_id"], each["token_text"]) for each in first] == [(8, "eight"), (101, "<s>"), (102, None)]
    assert [each["log_prob"] for each in first] == pytest.approx([-LN2, -2 * LN2, -3 * LN2])
    assert (rows[0]["teacher_rank"], rows[0]["student_log_prob"], rows[0]["teacher_log_prob"]) == (40, -0.5, -9.0)
    assert {row["weight"] for row in report(connection, "inspected_tokens", 1)} == {None}  # no mask yet


def test_graded_answers_show_each_reason_before_a_second_of_any(connection):
    """Wrong: problem 2 sample 0 (other), 3 and 0 (none), 3 and 1 (other)."""
    rows = report(connection, "graded_answers")
    assert columns(rows, "correct", "place", "prompt_id", "sample", "verdict_reason") == [
        (True, 1, 1, 0, "same"), (True, 2, 1, 1, "same"), (True, 3, 2, 1, "same"),
        (False, 1, 2, 0, "other"), (False, 2, 3, 0, "none"), (False, 3, 3, 1, "other")]
    assert (rows[0]["answer"], rows[3]["answer"], rows[0]["ground_truth"]) == ("3", "4", "3")


@pytest.mark.parametrize("name", ["disliked_tokens", "gap_along_response", "gap_histogram", "graded_answers",
                                  "inspected_rollouts", "inspected_tokens", "lengths_by_round", "timings_by_stage",
                                  "worst_tokens_by_round"])
def test_the_rows_of_one_round_are_those_that_it_has_among_all(connection, name):
    """A report of a round asks for its rows alone: same rows, same order."""
    rows = catalog.query(connection, sqlfiles.load("reports", name).text).to_pylist()
    for number in (0, 1):
        assert report(connection, name, number) == [row for row in rows if row["round"] == number]
