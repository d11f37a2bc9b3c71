"""A shard that DuckDB's threads share one handle of: each reads what it asked for."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage.storefiles import SharedFile

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def file(tmp_path):
    (tmp_path / "shard").write_bytes(CONTENT)
    with SharedFile(tmp_path / "shard") as file:
        yield file


def test_a_thread_that_seeks_between_another_threads_seek_and_read_moves_nothing(file):
    file.seek(1000)
    other = threading.Thread(target=lambda: (file.seek(7), file.read(3)))
    other.start()
    other.join()
    assert file.read(4) == CONTENT[1000:1004] and file.tell() == 1004


def test_many_threads_read_their_own_places_through_one_handle(file):
    def wrong(place: int) -> bool:
        file.seek(place)
        return file.read(5000) != CONTENT[place:place + 5000]

    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(wrong, range(0, len(CONTENT) - 5000, 997)))


def test_it_reads_seeks_and_ends_as_a_file_does(file):
    assert file.seek(-3, io.SEEK_END) == len(CONTENT) - 3
    assert file.read(10) == CONTENT[-3:] and file.read(10) == b""
    assert file.seek(5) == 5 and file.seek(2, io.SEEK_CUR) == 7
    assert file.read() == CONTENT[7:]
    assert file.readable() and file.seekable() and not file.writable()


def test_a_closed_file_is_closed(file):
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(1)
