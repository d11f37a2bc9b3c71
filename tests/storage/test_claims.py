"""Claims on shards: one owner at a time, taken over from who is silent, and few objects however long the work takes."""

import threading

import pytest

from storage.claims import Claims
from storage.layout import WORKER
from storage.objects import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store", create=True)


def claims(store, lease_s: float = 60) -> Claims:
    return Claims(store, "r", 0, lease_s)


def files(store) -> list[str]:
    return sorted(info.key.removeprefix("run=r/round=0/claims/") for info in store.list("run=r/round=0/claims/"))


def test_of_many_who_want_a_shard_one_has_it(store):
    for shard in range(20):
        everybody, taken, together = [claims(store) for _ in range(4)], [], threading.Barrier(4)

        def take(mine: Claims) -> None:
            together.wait()
            taken.append(mine.take("score", shard))

        threads = [threading.Thread(target=take, args=(mine,)) for mine in everybody]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == [False, False, False, True]


def test_a_night_of_beats_leaves_two_objects_and_nobody_takes_the_shard(store):
    owner, other = claims(store), claims(store, lease_s=0)
    assert owner.take("score", 7)
    for beat in range(1, 50):
        owner.renew()
        assert other.look() == {("score", 7): beat}
    assert files(store) == ["score-7/48.json", "score-7/49.json"]
    owner.give_back("score", 7)
    assert files(store) == [] and other.look() == {}


def test_who_looked_long_ago_takes_neither_what_went_on_nor_what_was_given_back(store):
    owner, late = claims(store), claims(store, lease_s=0)
    owner.take("score", 0)
    owner.take("score", 1)
    late.look()
    for _ in range(3):
        owner.renew()
    owner.give_back("score", 1)
    assert not late.take("score", 0) and not late.take("score", 1)
    assert files(store) == ["score-0/2.json", "score-0/3.json"]
    late.look()
    assert late.take("score", 1)


def test_who_was_away_while_another_worked_on_loses_its_claim(store):
    away, other = claims(store), claims(store, lease_s=0)
    away.take("score", 0)
    other.look()
    assert other.take("score", 0)
    for _ in range(3):
        other.renew()
    away.renew()
    away.give_back("score", 0)
    assert files(store) == ["score-0/3.json", "score-0/4.json"]


def test_a_worker_without_a_shard_is_seen_to_live_until_it_leaves_or_its_stage_is_finished(store):
    place = WORKER, 2**127
    worker, watching, impatient = claims(store), claims(store), claims(store, lease_s=0)
    worker.attend(place[1])
    first = watching.look()
    worker.renew()
    assert first == {place: 0} and watching.look() == impatient.look() == {place: 1}
    assert impatient.silent(*place) and not watching.silent(*place) and not impatient.silent("score", 0)
    again = claims(store)
    again.attend(place[1])
    assert watching.look() == {place: 0}, "the same flow run, played again"
    watching.clear()
    worker.renew()
    assert watching.look() == {}, "who comes back after the end leaves nothing behind"


def test_who_looks_while_others_renew_and_give_back_sees_no_error(store):
    owner, looker, over = claims(store), claims(store), threading.Event()

    def work() -> None:
        while not over.is_set():
            for shard in range(16):
                owner.take("score", shard)
            for _ in range(4):
                owner.renew()
            for shard in range(16):
                owner.give_back("score", shard)

    working = threading.Thread(target=work)
    working.start()
    try:
        for _ in range(400):
            looker.look()
    finally:
        over.set()
        working.join()
