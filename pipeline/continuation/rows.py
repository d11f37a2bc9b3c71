"""Let a model go on from prefixes and grade where it ends: one row per continuation.

A verdict is on the prefix and the continuation together, decoded as one: a cut may lie inside a character. What is
compared with it, `prefix_correct`, is the verdict of the same checker on the rollout as the student ended it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.config.model import Model
from pipeline.context import RoundContext
from pipeline.continuation.plan import continuation_seed, room_after
from pipeline.evaluate.checker import Checker
from pipeline.rollout.engine import Sampling, as_text, open_engine
from storage import schemas

Place = tuple[dict, int]
"""A rollout (its columns) and the depth at which it is cut."""
TIMEOUT_S = 5.0
"""Of a verdict, where there is no [evaluation] to say it."""


@dataclass(frozen=True)
class GoesOn:
    """A model that goes on: where it is loaded from, how it is run, what it may draw and where it ends."""

    role: str
    folder: Path
    settings: Model
    fingerprint: str
    tokenizer: Any
    vocabulary: int
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """One continuation that is asked for."""

    rollout: dict
    depth: int
    sample: int
    seed: int

    @property
    def prefix(self) -> list[int]:
        """Response tokens that are kept."""
        return self.rollout["response_tokens"][:self.depth]


Written = tuple[list[int], str]
"""Token ids of a continuation and its finish reason."""


def continue_and_grade(context: RoundContext, model: GoesOn, places: Sequence[Place], student_tokenizer) -> pa.Table:
    """Rows of the table `continuation` in the order of `places`, samples of a place one after the other."""
    asked = [Asked(rollout, depth, sample, continuation_seed(context.prompt_seed, context.number,
                                                             rollout["rollout_id"], depth, model.role, sample))
             for rollout, depth in places for sample in range(context.config.continuation.samples)]
    written = _write(context, model, asked)
    rows = list(_graded(context.config, model, asked, written, student_tokenizer))
    return pa.Table.from_pylist(rows, schema=schemas.CONTINUATION)


def _write(context: RoundContext, model: GoesOn, asked: Sequence[Asked]) -> list[Written]:
    """Those with equal room are decoded together."""
    config, found, done = context.config, {}, 0

    def progress(finished: int, _) -> None:
        context.progress(f"{model.role} continuations", done + finished, len(asked))

    rooms = [room_after(config, each.depth) for each in asked]
    for room in sorted(set(rooms)):
        places = [i for i in range(len(asked)) if rooms[i] == room]
        generations = open_engine(config.rollout.engine, model.settings, model.folder).generate(
            [np.array(asked[i].rollout["prompt_tokens"] + asked[i].prefix, np.int32) for i in places],
            [asked[i].seed for i in places], _sampling(config, model, room), progress)
        found |= {i: (generations.tokens(at).tolist(), generations.finish_reasons[at]) for at, i in enumerate(places)}
        done += len(places)
    return [found[i] for i in range(len(asked))]


def _sampling(config: RunConfig, model: GoesOn, room: int) -> Sampling:
    """[continuation]'s settings where it has any, [rollout]'s where not."""
    own, rollout = config.continuation, config.rollout
    return Sampling(own.temperature or rollout.temperature, own.top_p or rollout.top_p, room, model.vocabulary,
                    model.stop_ids)


def _graded(config: RunConfig, model: GoesOn, asked: Sequence[Asked], written: Sequence[Written], student_tokenizer):
    prefix_correct: dict[int, bool] = {}
    with Checker(timeout_s=config.evaluation.timeout_s if config.evaluation else TIMEOUT_S) as checker:
        for each, (token_ids, finish_reason) in zip(asked, written, strict=True):
            rollout = each.rollout
            rollout_id, reference = rollout["rollout_id"], rollout["ground_truth"]
            if rollout_id not in prefix_correct:
                whole = as_text(student_tokenizer, rollout["response_tokens"], plain=True)
                prefix_correct[rollout_id] = checker.check(whole, reference).correct
            verdict = checker.check(as_text(model.tokenizer, each.prefix + token_ids, plain=True), reference)
            yield {"rollout_id": rollout_id, "prompt_id": rollout["prompt_id"], "task": rollout["task"],
                   "depth": each.depth, "role": model.role, "sample": each.sample, "model": model.fingerprint,
                   "response_text": as_text(model.tokenizer, token_ids, plain=False),
                   "response_tokens": len(token_ids),
                   "finish_reason": finish_reason, "correct": verdict.correct, "verdict_reason": verdict.reason,
                   "prefix_correct": prefix_correct[rollout_id], "seed": each.seed}
