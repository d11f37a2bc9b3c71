"""One tiny run of two rounds, played in this process, that every replay starts from."""

import shutil
from pathlib import Path

import pytest

from flows.order import play_round
from pipeline import stages
from pipeline.config import load_config
from pipeline.context import open_context
from pipeline.replay.branch import make_branch
from pipeline.replay.request import Request
from pipeline.start import start_run
from tests.tiny import make_tiny


def play(store: str, run: str, number: int):
    """Bring a round to its commit as `opd run` does, without child processes; returns its manifest."""
    context = open_context(store, run, number)
    stages.prepare_process(context.config.threads)
    return play_round(context.round, lambda: stages.plan(context),
                      lambda pending: [stages.run_shard(context, stage, shard)
                                       for stage, shards in pending.items() for shard in shards])


def replay(store: str, number: int = 1, *, run: str = "tiny", **request):
    """A branch and its round; returns the branch's context and manifest."""
    context = make_branch(store, Request(run, number, **request))
    return context, play(store, context.run, number)


@pytest.fixture(scope="session")
def played(tmp_path_factory) -> Path:
    """A folder with models, problems and a store in which run `tiny` has two rounds. Left as it is."""
    folder = tmp_path_factory.mktemp("played")
    config = load_config(make_tiny(folder))
    start_run(config)
    for number in range(2):
        play(config.store, "tiny", number)
    return folder


@pytest.fixture
def store(played, tmp_path) -> str:
    """A copy of the store alone."""
    return shutil.copytree(played / "store", tmp_path / "store").as_posix()
