"""SQL from a person reads the snapshot and nothing else, whatever it says."""

import os

import made_rounds as made
import pytest

from storage import catalog
from storage.errors import IntegrityError, UserError
from storage.objects import open_store
from storage.relations import TABLES
from storage.snapshot import take_snapshot

RESPONSES = {1: [5, 6, 7]}
WRITES = [
    "COPY (SELECT 1) TO '{target}'",
    "COPY tokens TO '{target}'",
    "WITH x AS (COPY (SELECT 1) TO '{target}') SELECT 1",
    "WITH x AS MATERIALIZED (COPY (SELECT 1) TO '{target}' (USE_TMP_FILE false)) SELECT 1",
    "SELECT * FROM (WITH x AS (COPY (SELECT 1) TO '{target}') SELECT 1)",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{target}'",
    "EXPLAIN (ANALYZE) WITH x AS (COPY (SELECT 1) TO '{target}') SELECT 1",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('WITH x AS (COPY (SELECT 1) TO ''{target}'') "
    "SELECT 1')::VARCHAR)",
    "EXPORT DATABASE '{target}'", "ATTACH '{target}' AS other", "CREATE TABLE x AS SELECT 1",
    "INSERT INTO raw.x VALUES (1)", "DROP VIEW tokens", "CREATE OR REPLACE VIEW tokens AS SELECT 1",
    "WITH x AS (INSERT INTO y VALUES (1) RETURNING *) SELECT * FROM x", "SELECT 1; COPY (SELECT 1) TO '{target}'",
]
READS = [
    "SELECT * FROM read_csv('/etc/passwd')", "SELECT * FROM read_text('/etc/passwd')", "FROM '/etc/passwd'",
    "SELECT * FROM glob('/etc/*')", "SELECT * FROM read_parquet('{other}')", "SELECT * FROM parquet_schema('{other}')",
    "SELECT * FROM read_parquet('{store}/run=made/round=0/tokens/scores=abcdef01/../../../../../other.parquet')",
    "SELECT * FROM query('SELECT 1')", "SELECT getenv('HOME')", "SELECT * FROM hidden",
]
SETTINGS = [
    "SET enable_external_access = true", "SET allowed_paths = ['/etc/passwd']", "RESET lock_configuration",
    "PRAGMA database_list", "CALL pragma_version()", "INSTALL httpfs", "LOAD '/tmp/x.so'", "SET threads = 1",
    "USE raw", "CHECKPOINT", "SELECT * FROM enable_logging()", "PREPARE x AS SELECT 1", "", "-- nothing",
    "PIVOT tokens ON position",
]


@pytest.fixture(scope="module", params=["direct", "verified"])
def place(request, tmp_path_factory):
    """(connection, folder): a round, and beside the store a file that is not of it."""
    folder = tmp_path_factory.mktemp("locked")
    store = open_store(folder / "store", create=True)
    made.start_run(store, folder)
    made.begin_round(store, "made", 0, [(made.rollouts(RESPONSES), made.tokens(RESPONSES))])
    snapshot = take_snapshot(store, in_progress=True)
    (folder / "other.parquet").write_bytes(next((store.root / "run=made/round=0/rollouts").iterdir()).read_bytes())
    return catalog.connect(store, snapshot, verified=request.param == "verified"), folder


def refused(connection, sql):
    """The one line of the refusal."""
    with pytest.raises(UserError) as refusal:
        catalog.query(connection, sql)
    line = str(refusal.value)
    assert "\n" not in line and line.startswith("SQL: ")
    return line


@pytest.mark.parametrize("sql", WRITES)
def test_nothing_is_written(place, sql):
    connection, folder = place
    refused(connection, sql.format(target=folder / "written"))
    assert not (folder / "written").exists()


def test_a_committed_shard_is_never_a_target(place):
    connection, folder = place
    shard = next((folder / "store/run=made/round=0/rollouts").iterdir())
    before = shard.read_bytes()
    for sql in WRITES:
        refused(connection, sql.format(target=shard))
    assert shard.read_bytes() == before


@pytest.mark.parametrize("sql", READS)
def test_nothing_but_the_snapshot_is_read(place, sql):
    connection, folder = place
    hidden = made.tokens(RESPONSES)  # a Python variable is no table
    assert hidden.num_rows
    refused(connection, sql.format(other=folder / "other.parquet", store=folder / "store"))


@pytest.mark.parametrize("sql", SETTINGS)
def test_settings_and_other_statements_are_refused(place, sql):
    refused(place[0], sql)


def test_below_the_guard_the_connection_itself_is_locked(place):
    connection, folder = place
    import duckdb

    for sql in ("SET enable_external_access = true", "SELECT * FROM read_csv('/etc/passwd')",
                f"COPY (SELECT 1) TO '{folder / 'written'}'", f"ATTACH '{folder / 'written.db'}' AS other"):
        with pytest.raises(duckdb.Error):
            connection.execute(sql)
    assert not [name for name in os.listdir(folder) if name.startswith("written")]


@pytest.mark.parametrize("sql", [
    "SELECT 1", "  select 1 ; ", "-- why\nSELECT 1 -- how", "FROM tokens", "VALUES (1)", "DESCRIBE tokens",
    "SHOW TABLES", "SUMMARIZE tokens",
    "EXPLAIN SELECT 1", "explain analyze SELECT 1", "EXPLAIN (ANALYZE, FORMAT json) SELECT 1",
    "WITH RECURSIVE r AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM r WHERE a < 3) SELECT * FROM r",
    "PIVOT tokens ON position IN (0, 1) USING avg(gap) GROUP BY task", "SELECT * FROM range(3)",
    "SELECT unnest([1, 2])", "SELECT ';'", "SELECT 'COPY x TO y' AS insert_query_node", "SELECT * FROM duckdb_views()",
])
def test_ordinary_questions_are_answered(place, sql):
    assert catalog.query(place[0], sql).num_columns > 0


def test_a_mistake_is_one_line_that_names_the_candidates(place):
    assert 'Referenced column "gab" not found' in refused(place[0], "SELECT gab FROM tokens")
    assert '"gap"' in refused(place[0], "SELECT gab FROM tokens")


def test_hostile_text_in_a_message_is_made_visible(place):
    assert "\x1b" not in refused(place[0], 'SELECT "\x1b[31mred" FROM tokens')


def test_endless_sql_is_refused_quickly(place):
    refused(place[0], "SELECT " + "1 + " * 30_000 + "1")
    refused(place[0], "SELECT " + "NOT " * 900 + "true")


def test_a_changed_shard_is_named_where_hashes_are_checked(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    made.start_run(store, tmp_path)
    made.begin_round(store, "made", 0, [(made.rollouts(RESPONSES), made.tokens(RESPONSES))])
    connection = catalog.connect(store, take_snapshot(store, in_progress=True), verified=True)
    shard = next((tmp_path / "store/run=made/round=0/tokens/scores=abcdef01").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IntegrityError, match=shard.name):
        catalog.query(connection, "SELECT avg(gap) FROM tokens")


def test_a_symbolic_link_in_the_store_is_not_followed(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    made.start_run(store, tmp_path)
    made.begin_round(store, "made", 0, [(made.rollouts(RESPONSES), made.tokens(RESPONSES))])
    shard = next((tmp_path / "store/run=made/round=0/rollouts").iterdir())
    (tmp_path / "elsewhere.parquet").write_bytes(shard.read_bytes())
    shard.unlink()
    shard.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(IntegrityError, match="symbolic link"):
        catalog.connect(store, take_snapshot(store, in_progress=True))


@pytest.mark.parametrize("name", ["a'b; DROP", "brackets[0-9]*", "space and ünï"])
def test_a_store_may_lie_in_a_folder_of_any_name(tmp_path, name):
    store = open_store(tmp_path / name / "store", create=True)
    made.start_run(store, tmp_path)
    made.begin_round(store, "made", 0, [(made.rollouts(RESPONSES), made.tokens(RESPONSES))])
    connection = catalog.connect(store, take_snapshot(store, in_progress=True))
    assert catalog.query(connection, "SELECT run, round, count(*) AS n FROM tokens GROUP BY ALL").to_pylist() == [
        {"run": "made", "round": 0, "n": 3}]


def test_every_table_has_a_relation():
    assert set(TABLES) == {"prompts", "rollouts", "tokens", "hidden", "continuation", "mask", "steps", "evaluation"}
