"""What a child process may be asked to do. Arguments and results are small and plain; token data stays in the store.

A job returns its result, or what finishes it: the child may run that in a thread beside the next job.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from flows.order import next_round
from pipeline.config import RunConfig
from pipeline.context import Progress, RoundContext, open_context


def start(progress: Progress, config: dict, here: bool = False) -> dict:
    """Create the run, or find it; returns run.json. `here`: this machine is to play it."""
    from pipeline.start import start_run

    progress("checking models and prompts", 0, 1)
    return start_run(RunConfig.model_validate(config), here=here)


def preview(progress: Progress, config: dict) -> dict:
    """What `start` and the next `plan` would write, without writing: run.json and the round's plan, None if done."""
    from pipeline.prompts.stage import preview_plan
    from pipeline.start import describe_run, existing_run, refuse_other_config

    config = RunConfig.model_validate(config)
    document = existing_run(config)
    if document is None:
        document = describe_run(config)
        return {"run": document, "plan": preview_plan(config, document["benchmarks"], 0)}
    refuse_other_config(config, document)
    number = next_round(config.store, config.run, config.rounds)
    plan = None if number is None else preview_plan(config, document["benchmarks"], number)
    return {"run": document, "plan": plan}


def plan(progress: Progress, store: str, run: str, number: int) -> dict:
    """Write the plan of a round; returns its shape."""
    from pipeline import stages

    context = _context(store, run, number, progress)
    stages.plan(context)
    return {"shards": len(context.round.plan().shards)}


def shard(progress: Progress, store: str, run: str, number: int, stage: str, shard: int) -> Callable[[], dict]:
    """Begin one shard of one stage; what finishes it returns its receipt in short."""
    from pipeline import stages

    finish = stages.begin_shard(_context(store, run, number, progress), stage, shard)

    def told() -> dict:
        receipt = finish()
        return {"stage": stage, "shard": shard, "rows": receipt.file.rows, "bytes": receipt.file.size,
                "sha256": receipt.file.sha256, "facts": receipt.facts}

    return told


def rest(progress: Progress) -> dict:
    """Free the device of what a kept rollout engine holds there, until it is asked again."""
    from pipeline.rollout import engine

    engine.rest()
    return {}


def drop(progress: Progress) -> dict:
    """Forget the models of a stage that is over, so that those of the next have room; says whether a device is held
    all the same."""
    from pipeline import kept

    kept.drop()
    return {"device": kept.holds_device()}


def end_engine(progress: Progress) -> dict:
    """End a kept rollout engine."""
    from pipeline.rollout import engine

    engine.close()
    return {}


def branch(progress: Progress, store: str, request: dict) -> dict:
    """Create a branch, or find it; returns its id, its round, and how many shards of each stage it shares."""
    from pipeline.replay.branch import make_branch, shared_shards
    from pipeline.replay.request import Request

    context = make_branch(store, Request(**request))
    return {"run": context.run, "round": context.number, "shared": shared_shards(context)}


def check(progress: Progress, store: str, run: str, number: int) -> dict:
    """Repeat a committed round as it was and compare every byte."""
    from pipeline.replay.check import check_round

    return check_round(_context(store, run, number, progress))


def make_pair(progress: Progress, folder: str, seed: int, threads: int | None) -> dict:
    """Make the quickstart's teacher and student, or find them."""
    from pipeline.quickstart.pair import make_pair
    from pipeline.stages import prepare_process

    prepare_process(threads)
    return make_pair(Path(folder), seed, progress).as_dict()


def evaluate_model(progress: Progress, model: str, config: dict, out: str | None) -> list[dict]:
    """Grade any model on the config's held-out problems; returns rows of the view `accuracy`."""
    from pipeline.evaluate.any_model import evaluate_model
    from pipeline.stages import prepare_process

    config = RunConfig.model_validate(config)
    prepare_process(config.threads)
    return evaluate_model(config, model, out and Path(out), progress)


def report(progress: Progress, store: str, run: str, number: int | None, folder: str) -> dict:
    """Write the report of a run, or of its round `number`, into `folder`; returns the paths."""
    from pipeline.report import write_report
    from storage.objects import open_store

    return write_report(open_store(store), run, number, Path(folder))


def summary(progress: Progress, store: str, run: str, number: int) -> dict:
    """A round in statistics: title, markdown and table, without any text of models or prompts."""
    from pipeline.report import summary
    from storage.objects import open_store

    return summary(open_store(store), run, number)


def track(progress: Progress, store: str, run: str, number: int, trackers: list[dict]) -> dict:
    """Show the rounds up to `number` in each tracker; returns by tracker "ok" or one line about what is wrong."""
    from pydantic import TypeAdapter

    from pipeline.config.trackers import Tracker
    from pipeline.track.feed import feed
    from storage.objects import open_store

    return feed(open_store(store), run, number, TypeAdapter(list[Tracker]).validate_python(trackers), progress)


JOBS = {job.__name__: job for job in (start, preview, plan, shard, rest, drop, end_engine, branch, check, make_pair,
                                      evaluate_model, report, summary, track)}


@lru_cache(maxsize=1)
def _context(store: str, run: str, number: int, progress: Progress) -> RoundContext:
    from pipeline.stages import prepare_process

    context = open_context(store, run, number, progress)
    prepare_process(context.config.threads)
    return context
