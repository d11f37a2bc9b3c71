"""Held-out problems: the benchmarks of [evaluation], read as prompts are, and kept apart from those.

    found = read_benchmark(benchmark, config.prompts)      # prompt id -> Prompt, in the source's order

A benchmark holds exactly the problems that it held when the run began, none of which the run's prompts hold.
"""

import json
from functools import lru_cache

from pipeline.config import RunConfig
from pipeline.config.evaluation import Benchmark
from pipeline.config.model import Model, Prompts
from pipeline.prompts.local_copies import data_folder
from pipeline.prompts.pool import Prompt, context_window, ids_sha256, read_prompts
from pipeline.prompts.sources import read_source
from pipeline.prompts.templates import encode
from storage.errors import UserError

SOURCE = "evaluation.benchmark.source"
"""The keys that an error about a benchmark's source names."""


def read_benchmark(benchmark: Benchmark, prompts: Prompts) -> dict[int, Prompt]:
    """Problems by id. Raises UserError for a problem without a reference answer: nothing could grade it."""
    return _read(_as_prompts(benchmark, prompts), data_folder())


@lru_cache(maxsize=8)
def _read(prompts: Prompts, _folder) -> dict[int, Prompt]:
    """Kept for the next shard of this process; the folder is where hub sources are looked for."""
    try:
        found, _ = read_prompts(prompts)
    except UserError as error:  # which speaks of the section that it was written for
        raise UserError(f"benchmark {prompts.task}: {error}".replace("prompts.source", SOURCE)) from error
    if not found:
        raise UserError(f"benchmark {prompts.task} has no problems: name another file, split or limit")
    unanswered = next((each for each in found.values() if each.ground_truth is None), None)
    if unanswered:
        raise UserError(f"benchmark {prompts.task}: row {unanswered.source_row} has no reference answer: name its "
                        f"column as {SOURCE}.answer, or leave the row out")
    return found


def check_benchmarks(config: RunConfig) -> dict | None:
    """What run.json records of the benchmarks: name -> count and hash of the problems; None without [evaluation].

    Raises UserError for what could not be graded, does not fit a model, or is asked in training too.
    """
    if config.evaluation is None:
        return None
    trained_on = _questions(config.prompts)
    return {each.name: _facts(each, config, trained_on) for each in config.evaluation.benchmark}


def planned_problems(config: RunConfig, recorded: dict) -> dict[str, list[int]]:
    """Problem ids of each benchmark, sorted. Raises UserError if they are not those that run.json records."""
    found = {each.name: sorted(read_benchmark(each, config.prompts)) for each in config.evaluation.benchmark}
    for name, ids in found.items():
        if ids_sha256(ids) != recorded[name]["sha256"]:
            raise UserError(f"benchmark {name} changed since the run began: it gives {len(ids)} problems, and gave "
                            f"{recorded[name]['problems']}; put the old data back, or start another run")
    return found


def _as_prompts(benchmark: Benchmark, prompts: Prompts) -> Prompts:
    """The benchmark as a [prompts] section: template and system message are the run's where it has none."""
    own = {"template": benchmark.template, "system": benchmark.system}
    return prompts.model_copy(update={"source": benchmark.source, "task": benchmark.name,
                                      **{key: value for key, value in own.items() if value is not None}})


def _facts(benchmark: Benchmark, config: RunConfig, trained_on: set[str]) -> dict:
    found = read_benchmark(benchmark, config.prompts)
    shared = _questions(_as_prompts(benchmark, config.prompts)) & trained_on
    if shared:
        raise UserError(f"benchmark {benchmark.name} is not held out: prompts.source has {len(shared)} of its "
                        f"{len(found)} problems; name another split, or another data set")
    graded = (config.student, config.teacher) if config.evaluation.teacher else (config.student,)
    for model in graded:
        check_fits(benchmark, config, model, found)
    return {"problems": len(found), "sha256": ids_sha256(sorted(found))}


def _questions(prompts: Prompts) -> set[str]:
    """Questions as they stand in the source, without a template; spaces do not count."""
    return {" ".join(json.dumps(row.question, ensure_ascii=False).split()) for row in read_source(prompts.source).rows}


def check_fits(benchmark: Benchmark, config: RunConfig, model: Model, found: dict[int, Prompt]) -> None:
    """Raise UserError if a problem and its answer may not fit into what `model` reads."""
    from pipeline.models import load_tokenizer

    longest = max(map(len, encode([each.messages for each in found.values()], load_tokenizer(model))))
    window, new = context_window(model), config.evaluation.max_new_tokens or config.rollout.max_new_tokens
    if window is not None and longest + new > window:
        raise UserError(f"{model.path} reads {window} tokens, but the longest problem of benchmark {benchmark.name} "
                        f"has {longest} and {new} may be written: lower evaluation.max_new_tokens")
