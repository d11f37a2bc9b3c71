"""A late round costs what an early one costs: the same number of calls to the store, however many rounds lie there.

Counted, not timed: benchmarks/rounds.py takes the seconds and the memory of 200 rounds.
"""

from collections import Counter

import pytest

from flows.order import next_round, play_round
from pipeline import stages
from pipeline.config import load_config
from pipeline.context import open_context
from pipeline.start import start_run
from storage.objects import LocalStore
from tests.tiny import make_tiny

ROUNDS = 8
CALLS = ("get", "put_if_absent", "list", "folders", "holds", "local_path")


@pytest.mark.timeout(120)
def test_the_eighth_round_asks_the_store_no_more_often_than_the_third(tmp_path, monkeypatch):
    settings = {"prompts.per_round": 4, "prompts.per_shard": 4, "rollout.max_new_tokens": 4, "rounds": ROUNDS}
    config = load_config(make_tiny(tmp_path, **settings))
    start_run(config)
    calls = Counter()
    for name in CALLS:
        monkeypatch.setattr(LocalStore, name, counted(getattr(LocalStore, name), name, calls))
    by_round = []
    while (number := next_round(config.store, config.run, ROUNDS)) is not None:
        context = open_context(config.store, config.run, number)
        play_round(context.round, lambda: stages.plan(context), lambda pending: compute(context, pending))
        by_round.append(dict(calls))
        calls.clear()
    assert len(by_round) == ROUNDS and by_round[2]["get"] > 20
    assert all(each == by_round[2] for each in by_round[3:]), by_round


def counted(method, name: str, calls: Counter):
    def call(self, *arguments):
        calls[name] += 1
        return method(self, *arguments)

    return call


def compute(context, pending: dict[str, list[int]]) -> None:
    for stage, shards in pending.items():
        for shard in shards:
            stages.run_shard(context, stage, shard)
