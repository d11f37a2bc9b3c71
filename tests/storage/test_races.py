import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from small_store import STAGE_TABLES, make_run, play_round, table

from storage import documents
from storage.objects import open_store
from storage.rounds import Round, committed_rounds
from storage.snapshot import take_snapshot

HERE = Path(__file__).parent


@pytest.mark.parametrize("workers, races", [(2, 35), (8, 15)])
def test_of_workers_with_differing_bytes_one_wins_and_receipt_and_file_agree(memory_path, workers, races):
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}"}
    subprocess.run([sys.executable, HERE / "forks.py", "race", memory_path / "store", str(workers), str(races)],
                   env=environment, check=True, timeout=120)
    store = open_store(memory_path / "store")
    winners = set()
    for number in range(races):
        round = Round(store, f"race{number}", 0)
        receipt = round.receipt("prompts", 0)
        reports = [json.loads((memory_path / f"race{number}-{worker}.json").read_text()) for worker in range(workers)]
        assert [report["won"] for report in reports].count(True) == 1
        assert reports[store.get(f"run=race{number}/tight")[0]]["won"], "the winner's bytes were overwritten"
        assert {report["counts"] for report in reports} == {receipt.file.sha256}, "a worker believed in another file"
        assert documents.sha256(store.get(receipt.file.key)) == receipt.file.sha256
        rows = round.read("prompts")
        winners |= {worker for worker in range(workers) if rows.equals(table("prompts", 0, variant=worker))}
        assert rows.num_rows == 3
    assert winners, "no winner's rows were found"
    assert not list(store.root.rglob(".tmp-*")), "temp files are left behind"


def test_readers_see_whole_rounds_and_no_errors_while_rounds_commit(memory_path):
    store = open_store(memory_path / "store", create=True)
    make_run(store, "r", memory_path / "base")
    writer = threading.Thread(target=lambda: [play_round(store, "r", number, memory_path) for number in range(12)])
    writer.start()
    queries, seen = 0, set()
    while writer.is_alive():
        snapshot = take_snapshot(store, in_progress=queries % 2 == 0)
        for run, number, committed in snapshot.rounds():
            files = {name: snapshot.files(run, number, name) for name in STAGE_TABLES.values()}
            assert not committed or [len(each) for each in files.values()] == [2, 2, 2, 2, 1, 2, 1, 2]
            whole = (store.local_path(file.key).stat().st_size == file.size for each in files.values() for file in each)
            assert all(whole)
            seen.add((number, committed))
        queries += 1
    writer.join()
    assert queries > 20 and len(seen) > 12 and committed_rounds(store, "r") == list(range(12))
