"""The pool: every prompt a run may ask, without duplicates and without those that are too long.

A prompt's id hashes its content (task, data set, messages, reference answer), so the same problem has the same id in
every run, wherever its row lies.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipeline.config import RunConfig
from pipeline.config.model import Model, Prompts
from pipeline.prompts.draw import check_size, hasher63
from pipeline.prompts.local_copies import data_folder
from pipeline.prompts.sources import read_source
from pipeline.prompts.templates import as_json, check_template, encode, messages_of
from storage.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """One prompt, before it is tokenized."""

    prompt_id: int
    task: str
    data_source: str
    source_row: int
    messages: str
    ground_truth: str | None
    solution: str | None


@dataclass(frozen=True)
class Pool:
    """Prompt ids, sorted, and how they came about: `facts` go to run.json and into every plan."""

    prompt_ids: list[int]
    facts: dict


def read_prompts(prompts: Prompts) -> tuple[dict[int, Prompt], int]:
    """Prompts by id, in the source's order, and how many duplicates were dropped (the first one stays)."""
    return _read_prompts(prompts, data_folder())


@lru_cache(maxsize=4)
def _read_prompts(prompts: Prompts, _folder) -> tuple[dict[int, Prompt], int]:
    """Kept for the next shard of this process, the benchmarks' problems beside the run's; the folder is where hub
    sources are looked for."""
    check_template(prompts)
    problems = read_source(prompts.source)
    name = problems.name
    id_of = hasher63("prompt", prompts.task, name)
    found: dict[int, Prompt] = {}
    for row in problems.rows:
        messages = as_json(messages_of(row.question, prompts, f"{name}: row {row.number}"))
        prompt_id = id_of(messages, row.answer)
        found.setdefault(prompt_id, Prompt(prompt_id, prompts.task, name, row.number, messages, row.answer,
                                           row.solution))
    return found, problems.total - len(found)


def build_pool(prompts: Prompts, tokenizer) -> Pool:
    """Read the source and tokenize it. Raises UserError if no prompt is left, or too few for a round."""
    found, duplicates = read_prompts(prompts)
    lengths = [len(ids) for ids in encode([each.messages for each in found.values()], tokenizer)]
    kept = {prompt_id: length for prompt_id, length in zip(found, lengths) if length <= prompts.max_prompt_tokens}
    if not kept:
        raise UserError(_nothing_left(prompts, lengths))
    check_size(len(kept), prompts.per_round)
    return _pool(list(kept), duplicates, len(found) - len(kept), max(kept.values()))


def rebuild_pool(prompts: Prompts, facts: dict, load_tokenizer: Callable[[], Any]) -> Pool:
    """The pool of a run that began with `facts`. Raises UserError if the source has changed since.

    Where nothing was too long then, the ids alone tell: the source is not tokenized again.
    """
    if facts["too_long"] == 0:
        found, duplicates = read_prompts(prompts)
        pool = _pool(list(found), duplicates, 0, facts["longest_tokens"])
    else:
        pool = build_pool(prompts, load_tokenizer())
    if pool.facts != facts:
        raise UserError(f"prompts.source changed since the run began: it gives {pool.facts['prompts']} prompts from "
                        f"{pool.facts['rows']} rows, and gave {facts['prompts']} from {facts['rows']}; put the old "
                        "data back, or start another run")
    return pool


def _pool(kept: list[int], duplicates: int, too_long: int, longest: int) -> Pool:
    ids = sorted(kept)
    return Pool(ids, {
        "rows": len(ids) + duplicates + too_long, "duplicates": duplicates, "too_long": too_long, "prompts": len(ids),
        "longest_tokens": longest,
        "sha256": ids_sha256(ids)})


def ids_sha256(ids: list[int]) -> str:
    """sha256 of sorted prompt ids: two sets of prompts with one hash are the same prompts."""
    return hashlib.sha256(b"".join(each.to_bytes(8, "little") for each in ids)).hexdigest()


def check_pool(config: RunConfig) -> dict:
    """Facts of a run's pool, for run.json. Raises UserError also where a prompt and its response do not fit a model."""
    from pipeline.models import load_tokenizer

    facts = build_pool(config.prompts, load_tokenizer(config.student)).facts
    needed = facts["longest_tokens"] + config.rollout.max_new_tokens
    for side, model in (("student", config.student), ("teacher", config.teacher)):
        window = context_window(model)
        if window is not None and needed > window:
            raise UserError(f"the {side} reads {window} tokens, but the longest prompt has {facts['longest_tokens']} "
                            f"and rollout.max_new_tokens = {config.rollout.max_new_tokens}: lower "
                            "prompts.max_prompt_tokens or rollout.max_new_tokens")
    return facts


def context_window(model: Model) -> int | None:
    """Positions that the model has; None if its config does not say."""
    from pipeline.models import resolve
    from pipeline.models.files import read_json

    config = read_json(resolve(model) / "config.json")
    return (config.get("text_config") or config).get("max_position_embeddings")


def _nothing_left(prompts: Prompts, lengths: list[int]) -> str:
    if not lengths:
        return "prompts.source has no rows: name another file, split or limit"
    return (f"prompts.source has no prompt left: all {len(lengths)} are longer than prompts.max_prompt_tokens = "
            f"{prompts.max_prompt_tokens} (the shortest has {min(lengths)}): raise it")
