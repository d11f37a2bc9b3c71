"""The catalog over an object store, against a server on loopback."""

import made_rounds as made
import pytest

from storage import catalog, codec, documents, layout
from storage.errors import IntegrityError, UserError
from storage.objects import open_store
from storage.records import ShardFile
from storage.snapshot import RoundFiles, Snapshot
from tests.s3_server import s3_server


@pytest.fixture
def store():
    with s3_server():
        yield open_store("s3://bucket/store", create=True)


def put(store, number):
    """One shard of tokens as round `number`."""
    table = made.tokens({number: [5, 6, 7]})
    data = codec.encode(table)
    key = layout.shard("far", number, "tokens", 0, documents.sha256(data), "abcdef01")
    store.put_if_absent(key, data)
    return ShardFile(key, "tokens", table.num_rows, len(data), documents.sha256(data))


def test_a_locked_connection_reads_an_object_store_and_moves_only_what_it_opens(store):
    files = [put(store, number) for number in range(5)]
    snapshot = Snapshot(store, {}, {("far", number): RoundFiles("far", number, {"tokens": [file]})
                                    for number, file in enumerate(files)})
    for file in (files[1], files[2], files[4]):  # the first one stays: it tells the columns
        store.delete(file.key)
    connection = catalog.connect(store, snapshot)
    found = catalog.query(connection, "SELECT round, rollout_id, count(*) AS n FROM tokens WHERE round = 3 "
                                      "GROUP BY round, rollout_id")
    assert found.to_pylist() == [{"round": 3, "rollout_id": 3, "n": 3}]
    with pytest.raises(IntegrityError, match="no object .* in the store") as caught:
        catalog.query(connection, "SELECT sum(gap) FROM tokens")
    # DuckDB opens files on its own threads: which of the three it misses first is not decided
    assert any(file.key in str(caught.value) for file in (files[1], files[2], files[4]))
    with pytest.raises(UserError):
        catalog.query(connection, "SELECT * FROM read_parquet('s3://bucket/store/other.parquet')")
