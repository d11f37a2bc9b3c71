"""A late round costs what an early one costs: the same number of calls to the store, however many rounds lie there.

Counted, not timed: benchmarks/rounds.py takes the seconds and the memory of 200 rounds.
"""

import contextlib
from collections import Counter

import pytest

from flows.order import next_round, play_round
from pipeline import stages
from pipeline.config import load_config
from pipeline.context import open_context
from pipeline.report.asked import open_round, open_source
from pipeline.report.summary import summary
from pipeline.start import start_run
from pipeline.track.points import RoundPoints
from storage.objects import LocalStore
from tests.tiny import make_tiny

ROUNDS = 8
CALLS = ("get", "put_if_absent", "list", "folders", "holds", "local_path")


pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """A run of ROUNDS rounds: its store, its name, and the calls of each round."""
    settings = {"prompts.per_round": 4, "prompts.per_shard": 4, "rollout.max_new_tokens": 4, "rounds": ROUNDS}
    config = load_config(make_tiny(tmp_path_factory.mktemp("run"), **settings))
    start_run(config)
    with counting() as calls:
        by_round = []
        while (number := next_round(config.store, config.run, ROUNDS)) is not None:
            context = open_context(config.store, config.run, number)
            play_round(context.round, lambda: stages.plan(context), lambda pending: compute(context, pending))
            by_round.append(dict(calls))
            calls.clear()
    return context.store, config.run, by_round


def test_the_eighth_round_asks_the_store_no_more_often_than_the_third(counts):
    _, _, by_round = counts
    assert len(by_round) == ROUNDS and by_round[2]["get"] > 20
    assert all(each == by_round[2] for each in by_round[3:]), by_round


@pytest.mark.parametrize("shown", [summary, lambda store, run, number: RoundPoints(store, run, number)(number)],
                         ids=["artifact", "tracker"])
def test_to_show_the_eighth_round_asks_the_store_no_more_often_than_to_show_the_third(counts, shown):
    store, run, _ = counts
    by_round = []
    for number in range(2, ROUNDS):
        with counting() as calls:
            shown(store, run, number)
        by_round.append(dict(calls))
    assert by_round[0]["get"] > 2 and all(each == by_round[0] for each in by_round), by_round


def test_a_summary_that_looks_at_three_rounds_says_what_the_whole_run_says(counts):
    store, run, _ = counts
    whole, part = open_source(store, run, 6).rounds(), open_round(store, run, 6).rounds()
    assert [row["round"] for row in part] == [5, 6] and part == whole
    assert part[1]["start_avg_at_k"] is not None and part[1]["teacher_avg_at_k"] is not None


@contextlib.contextmanager
def counting():
    """Calls to a local store, by name."""
    calls = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(LocalStore, name, counted(getattr(LocalStore, name), name, calls))
        yield calls


def counted(method, name: str, calls: Counter):
    def call(self, *arguments):
        calls[name] += 1
        return method(self, *arguments)

    return call


def compute(context, pending: dict[str, list[int]]) -> None:
    for stage, shards in pending.items():
        for shard in shards:
            stages.run_shard(context, stage, shard)
