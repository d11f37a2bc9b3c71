"""SQL masks: what they see, what they may say, and what is refused."""

import math

import made_rounds as made
import pyarrow as pa
import pytest

from pipeline.config.model import Detector, SqlMask
from pipeline.mask import detector, sources, sql
from pipeline.mask.marks import counts, mask_table
from storage import catalog, sqlfiles
from storage.errors import UserError
from storage.objects import open_store
from storage.snapshot import take_snapshot

OK = "SELECT rollout_id, position, 0.0 AS weight, 'x' AS reason FROM tokens"
RESPONSES = {1: [5, 6, 7], 2: [9, 9]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A connection for masks of round 2, after rounds 0 and 1 of the same run and beside another run."""
    folder = tmp_path_factory.mktemp("masks")
    store = open_store(folder / "store", create=True)
    for run in ("made", "other"):
        made.start_run(store, folder, run)
    for number, token in ((0, 30), (1, 31)):
        made.commit_round(store, folder, "made", number, [(made.rollouts({8: [token]}), made.tokens({8: [token]}))])
    made.begin_round(store, "made", 2, [(made.rollouts(RESPONSES, finish_reason=["stop", "length"]),
                                         made.tokens(RESPONSES))])
    made.begin_round(store, "other", 0, [(made.rollouts({7: [40]}), made.tokens({7: [40]}))])
    connection = sql.connect(take_snapshot(store, "made", in_progress=True), "made", 2)
    (folder / "beside.parquet").write_bytes(b"PAR1")
    return connection, folder


def evaluate(place, text):
    return sql.evaluate(place[0], text, "mine", 2)[0]


def mark(rows, responses=RESPONSES):
    """The mask of `responses`, which follow each other in RESPONSES."""
    tokens, whole = made.tokens(responses), made.tokens(RESPONSES)
    first = whole["rollout_id"].to_pylist().index(next(iter(responses)))
    marks = sql.mark(rows, "mine", sql.Places(whole))
    return mask_table(tokens, [marks.cut(first, first + tokens.num_rows)])


def refusal(place, text):
    with pytest.raises(UserError) as refused:
        evaluate(place, text)
    line = str(refused.value)
    assert "\n" not in line and line.startswith("mask mine: ")
    return line.removeprefix("mask mine: ").removeprefix("SQL: ")


# --- what a mask sees ---


def test_a_mask_sees_this_rounds_tokens_and_rollouts(place):
    assert sorted(evaluate(place, OK)["rollout_id"].to_pylist()) == [1, 1, 1, 2, 2]
    rows = evaluate(place, OK + " SEMI JOIN (FROM rollouts WHERE finish_reason = 'length') USING (rollout_id)")
    assert rows["rollout_id"].to_pylist() == [2, 2]


def test_history_is_the_earlier_rounds_of_the_same_run(place):
    text = OK + " WHERE position < (SELECT count(*) FROM history) AND (SELECT max(round) FROM history) = $round - 1"
    assert evaluate(place, text).num_rows == 4
    assert evaluate(place, OK + " WHERE EXISTS (FROM history WHERE token_id IN (5, 40))").num_rows == 0


def test_a_mask_says_which_relations_it_reads(place):
    assert sql.evaluate(place[0], OK, "mine", 2)[1] == {"tokens"}
    assert sql.evaluate(place[0], OK + " WHERE EXISTS (FROM History)", "mine", 2)[1] == {"tokens", "history"}


def test_rounds_is_bound_not_pasted(place):
    assert evaluate(place, OK + " WHERE $round = 2").num_rows == 5
    assert evaluate(place, OK + " WHERE '$round' = '2'").num_rows == 0


def test_macros_and_derived_columns_are_there(place):
    rows = evaluate(place, OK + " WHERE position_bucket(position, 2) = 2 AND gap = 0 AND teacher_mass > 0.9")
    assert rows.num_rows == 1


def test_the_shard_gets_its_part_of_a_round_wide_mask(place):
    rows = evaluate(place, "SELECT rollout_id, position, 0.5 AS weight, task AS reason FROM tokens WHERE position = 1")
    assert mark(rows, {2: [9, 9]})["weight"].to_pylist() == [1.0, 0.5]
    assert mark(rows, {1: [5, 6, 7]})["reasons"].to_pylist() == [[], ["math"], []]


def test_weights_may_be_any_number_type(place):
    rows = evaluate(place, "SELECT rollout_id, position::BIGINT AS position, 2 AS weight, 'x' AS reason FROM tokens")
    assert mark(rows)["weight"].to_pylist() == [2.0] * 5


def test_two_reasons_for_one_token_multiply(place):
    rows = evaluate(place, f"{OK.replace('0.0', '0.5')} WHERE position = 2 UNION ALL "
                           f"{OK.replace('0.0', '0.25').replace(chr(39) + 'x', chr(39) + 'a')} WHERE position = 2")
    assert mark(rows)["weight"].to_pylist() == [1, 1, 0.125, 1, 1]
    assert mark(rows)["reasons"].to_pylist()[2] == ["a", "x"]


# --- what a mask may not be ---


@pytest.mark.parametrize("text", [
    "SELECT * FROM read_csv('/etc/passwd')", OK + " JOIN '/etc/passwd' ON true",
    OK + " JOIN '{folder}/beside.parquet' ON true",
    "SELECT * FROM read_parquet('{folder}/store/run=other/round=0/tokens/scores=abcdef01/*.parquet')",
    OK.replace("tokens", "rounds"), OK.replace("tokens", "main.tokens"), OK.replace("tokens", "raw.tokens"),
    OK.replace("tokens", "masked_tokens"), OK + ", duckdb_settings()", "FROM query('SELECT 1')", "FROM duckdb_tables",
    OK + " WHERE position IN (SELECT oid FROM pg_catalog.pg_class)", "FROM information_schema.tables", "SHOW TABLES",
    "DESCRIBE tokens", "SUMMARIZE tokens",
])
def test_nothing_else_is_readable(place, text):
    assert refusal(place, text.format(folder=place[1]))


@pytest.mark.parametrize("text", [
    "COPY tokens TO '{folder}/out'", "COPY (SELECT 1) TO '{folder}/out'", "ATTACH '{folder}/out' AS x",
    "WITH c AS (COPY (SELECT 1) TO '{folder}/out') " + OK, "WITH c AS (DELETE FROM tokens RETURNING *) " + OK,
    "EXPLAIN ANALYZE " + OK, OK + "; DROP VIEW tokens", OK + "; " + OK, "PRAGMA database_list", "INSTALL httpfs",
    "LOAD json", "SET threads = 4", "CALL pragma_version()", "CREATE TABLE x AS " + OK, "INSERT INTO x " + OK,
    "PREPARE x AS " + OK, "", "-- nothing",
])
def test_a_mask_is_one_select(place, text):
    assert refusal(place, text.format(folder=place[1]))
    assert not (place[1] / "out").exists()


@pytest.mark.parametrize("condition", [
    "random() < 0.5", "position.random() < 0.5", "system.main.random() < 0.5",
    "list_filter([1], lambda x: random() > 0) = []",
    "sum(position) OVER (PARTITION BY random()) > 0", "now() > '2020-01-01'", "current_date > '2020-01-01'",
    "CURRENT_TIMESTAMP IS NULL", "localtime IS NULL", "current_localtimestamp() IS NULL", "today() IS NULL",
    "get_current_time() IS NULL", "age(TIMESTAMP '2020-01-01') > INTERVAL 1 DAY", "ago(INTERVAL 1 DAY) IS NULL",
    "uuid() IS NULL", "gen_random_uuid() IS NULL", "nextval('s') > 1", "setseed(0.5) IS NULL", "txid_current() > 1",
    "current_setting('threads') = '1'", "getvariable('x') IS NULL", "pg_sleep(1) IS NULL", "write_log('x') IS NULL",
    "list_aggregate(teacher_topk_ids, 'reservoir_quantile', 0.5) > 1", "list_aggregate(teacher_topk_ids, task) > 1",
    "(SELECT reservoir_quantile(position, 0.5) FROM tokens) > 1", "current_query() = ''", "pg_conf_load_time() IS NULL",
])
def test_what_differs_from_run_to_run_is_refused(place, condition):
    line = refusal(place, f"{OK} WHERE {condition}")
    assert "is refused, masks are the same every time" in line or "name of its aggregate written out" in line


@pytest.mark.parametrize("tail", ["TABLESAMPLE 10%", "USING SAMPLE 3 ROWS",
                                  "TABLESAMPLE reservoir(2 ROWS) REPEATABLE (1)"])
def test_samples_are_refused(place, tail):
    assert "a sample is refused" in refusal(place, f"{OK} {tail}")


@pytest.mark.parametrize("parameter", ["$number", "$1", "?"])
def test_only_round_is_a_parameter(place, parameter):
    assert "is not known: a mask has $round only" in refusal(place, f"{OK} WHERE round = {parameter}")


@pytest.mark.parametrize("condition", [
    "hash(rollout_id, position) % 2 = 0", "position IN (FROM range(3))", "position = ANY (SELECT unnest([1, 2]))",
    "CASE WHEN position > 3 THEN true ELSE position BETWEEN 1 AND 3 END",
    "task ILIKE 'm%' AND regexp_matches(task, 'a')",
    "list_contains(teacher_topk_ids, token_id) AND list_sum(teacher_topk_log_probs) < 0",
    "split_part(task, 'a', 1) = 'm'",
    "coalesce(nullif(position, 1), greatest(1, 2)) // 2 + 1 > 0 AND NOT (position IS NULL)",
    "list_aggregate(teacher_topk_ids, 'max') > 1", "teacher_topk_ids[1] = token_id AND {'a': 1}.a = 1",
])
def test_ordinary_conditions_are_allowed(place, condition):
    evaluate(place, f"{OK} WHERE {condition}")


def test_windows_ctes_and_recursion_are_allowed(place):
    first = evaluate(place, OK + " QUALIFY row_number() OVER (PARTITION BY rollout_id ORDER BY position) = 1")
    assert first.num_rows == 2
    evaluate(place, "WITH RECURSIVE r AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM r WHERE a < 2), "
                    f"c AS ({OK}) SELECT * FROM c WHERE position IN (SELECT a FROM r)")


# --- what a mask may not say ---


@pytest.mark.parametrize("text,words", [
    (OK.replace("weight", "w"),
     "it returns (rollout_id, position, w, reason), not (rollout_id, position, weight, reason)"),
    ("SELECT position, rollout_id, 0.0 AS weight, 'x' AS reason FROM tokens", "it returns (position, rollout_id"),
    (OK.replace(", 'x' AS reason", ""), "it returns (rollout_id, position, weight), not"),
    (OK.replace("'x'", "NULL::VARCHAR"), "5 rows have no reason"),
    (OK.replace("0.0", "NULL::DOUBLE"), "5 rows have no weight"),
    (OK.replace("0.0", "'0'"), "weight is string, it should be double"),
    (OK.replace("'x'", "1"), "reason is int32, it should be string"),
    (OK.replace(" position", " position + 0.5 AS position"), "position is decimal"),
    (OK.replace(" position", " 5000000000 + position AS position"), "position is int64, it should be int32"),
    (OK.replace("tokens", "token"), "'token' cannot be read"),
    (OK + " WHERE nope", 'Referenced column "nope" not found'),
    (OK + " WHERE", "Parser Error"),
])
def test_other_columns_and_types_are_refused(place, text, words):
    assert words in refusal(place, text)


@pytest.mark.parametrize("row,words", [
    ((1, 0, math.nan, "x"), "weight nan at rollout 1 position 0"), ((1, 0, math.inf, "x"), "weight inf"),
    ((1, 2, -0.5, "x"), "weight -0.5 at rollout 1 position 2"),
    ((1, 3, 0.0, "x"), "rollout 1 position 3 is no token of this round"),
    ((1, -1, 0.0, "x"), "rollout 1 position -1 is no token"), ((3, 0, 0.0, "x"), "rollout 3 position 0 is no token"),
    ((0, 0, 0.0, "x"), "rollout 0 position 0 is no token"),
])
def test_weights_are_finite_and_places_exist(row, words):
    rows = pa.table({name: pa.array([value], kind) for (name, kind), value in zip(sql.COLUMNS.items(), row)})
    with pytest.raises(UserError, match=words):
        mark(rows)


def test_a_row_returned_twice_is_refused(place):
    with pytest.raises(UserError, match="rollout 1 position 0 is returned more than once for one reason"):
        mark(evaluate(place, f"{OK} UNION ALL {OK}"))


def test_reasons_are_a_few_names(place):
    rows = evaluate(place, OK.replace("'x'", "'r' || unnest(range(300))"))
    with pytest.raises(UserError, match="300 different reasons, at most 256"):
        mark(rows)


# --- files ---


@pytest.mark.parametrize("name", sqlfiles.names("masks"))
def test_a_shipped_mask_runs_and_returns_what_its_header_lists(place, name):
    file = sqlfiles.load("masks", name)
    assert list(file.columns) == list(sql.COLUMNS)
    sql.check_early({name: file.text})
    mark(evaluate(place, file.text))


def shipped(name, tokens, rollouts=None, history=None, number=0):
    """Counts of a shipped mask over one made round."""
    tables = {"tokens": tokens, "rollouts": rollouts} if rollouts else {"tokens": tokens}
    with catalog.connect_tables(tables, run="made", number=number, locked=False) as connection:
        sql.show_round(connection, "made", number)
        catalog.lock(connection, [])
        rows, _ = sql.evaluate(connection, sqlfiles.load("masks", name).text, name, number)
    return counts(mask_table(tokens, [sql.mark(rows, name, sql.Places(tokens))]))


def test_shipped_masks_touch_what_they_say():
    long = made.tokens({1: [5] * 1026, 2: [5]})
    assert shipped("positions_after", long)["reasons"] == {"positions_after": 2}
    tokens = made.tokens(RESPONSES, teacher_entropy=[3.5, 3.0, 0.0, 9.0, 1.0], teacher_log_prob=[-30, -20, -21, -1, -1])
    assert shipped("teacher_entropy", tokens) == {"tokens": 5, "masked": 0, "reasons": {"teacher_entropy": 2}}
    assert shipped("large_gap", tokens) == {"tokens": 5, "masked": 2, "reasons": {"large_gap": 2}}
    settled = made.tokens(RESPONSES, student_log_prob=[-0.005, -0.02, -0.005, 0, -1],
                          teacher_log_prob=[-0.01, 0, -0.02, 0, -1])
    assert shipped("settled", settled) == {"tokens": 5, "masked": 2, "reasons": {"settled": 2}}
    cut = made.rollouts(RESPONSES, finish_reason=["stop", "length"])
    assert shipped("truncated", tokens, cut) == {"tokens": 5, "masked": 2, "reasons": {"truncated": 2}}


def test_the_detector_in_sql_says_what_the_detector_says():
    sure = math.log(0.9)
    tokens = made.tokens({1: [9] * 8 + [8] * 8}, student_log_prob=[sure] * 16,
                         teacher_log_prob=[sure - 11] * 8 + [sure - 9] * 8)
    expected = counts(mask_table(tokens, [detector.mark(tokens, detector.flagged(tokens, Detector()))]))
    assert shipped("detector", tokens) == expected == {"tokens": 16, "masked": 8, "reasons": {"detector:9": 8}}


@pytest.mark.parametrize("file", ["../../etc/passwd", "/etc/passwd", "nope", "Positions_After", "", ".sql", "a b.sql",
                                  "positions_after.sql", "positions_after'; DROP"])
def test_a_mask_file_that_is_none_is_named(file):
    with pytest.raises(UserError, match="sql/masks"):
        sources.texts([SqlMask(file=file)])


def test_a_users_file_is_read_and_a_recorded_text_wins(tmp_path):
    mine = SqlMask(file=str(tmp_path / "mine.sql"))
    (tmp_path / "mine.sql").write_text(OK)
    assert sources.texts([mine, SqlMask(file="truncated"), Detector()]).keys() == {mine.file, "truncated"}
    assert sources.text(mine, {"sql_masks": {mine.file: "as it was"}}) == "as it was"
    assert sources.text(mine, {}) == OK


def test_a_binary_or_huge_file_is_refused(tmp_path):
    (tmp_path / "binary.sql").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "huge.sql").write_text("-" * 200_000)
    for name, words in (("binary", "not UTF-8"), ("huge", "200000 characters")):
        with pytest.raises(UserError, match=words):
            sources.texts([SqlMask(file=str(tmp_path / f"{name}.sql"))])


def test_bad_sql_is_found_before_there_is_data():
    with pytest.raises(UserError, match='mask mine.sql: SQL: Binder Error: Referenced column "nope"'):
        sql.check_early({"truncated": sqlfiles.load("masks", "truncated").text, "mine.sql": OK + " WHERE nope"})
