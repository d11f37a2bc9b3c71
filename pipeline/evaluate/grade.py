"""Let a model answer held-out problems, and grade the answers: one row per answer.

    rows = grade(graded, benchmark, problems, config, role="teacher", progress=...)

All models answer under the same seeds, so that what differs between two of them is the models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.config.evaluation import Benchmark
from pipeline.config.model import Model
from pipeline.evaluate.checker import Checker
from pipeline.models.files import generation_eos
from pipeline.prompts.draw import hash63
from pipeline.prompts.pool import Prompt
from pipeline.prompts.templates import encode
from pipeline.rollout.engine import Generations, Sampling, open_engine, stop_ids
from storage import schemas


@dataclass(frozen=True)
class Graded:
    """A model to be graded: the folder it is loaded from, how it is run, its fingerprint, its own tokenizer."""

    folder: Path
    settings: Model
    fingerprint: str
    tokenizer: Any


def grade(graded: Graded, benchmark: Benchmark, problems: Sequence[Prompt], config: RunConfig, *, role: str,
          progress: Callable[[str, int, int], None]) -> pa.Table:
    """Rows of the table `evaluation`, sorted by problem and sample."""
    tokenizer = graded.tokenizer
    asked = [(problem, sample) for problem in problems for sample in range(benchmark.samples)]
    prompts = dict(zip((each.prompt_id for each in problems), encode([each.messages for each in problems], tokenizer)))
    seeds = [hash63("evaluation", config.evaluation.seed, problem.prompt_id, sample) for problem, sample in asked]
    written = open_engine(config.rollout.engine, graded.settings, graded.folder).generate(
        [prompts[problem.prompt_id] for problem, _ in asked], seeds, sampling(config, graded),
        lambda done, total: progress(f"{role} {benchmark.name}", done, total))
    rows = _rows(asked, seeds, written, tokenizer, config.evaluation.timeout_s)
    same = {"task": benchmark.name, "model": graded.fingerprint, "role": role}
    return pa.Table.from_pylist([{**same, **row} for row in rows], schema=schemas.EVALUATION)


def sampling(config: RunConfig, graded: Graded) -> Sampling:
    """[evaluation]'s settings where it has any, [rollout]'s where not, over the model's own vocabulary."""
    own, rollout, vocabulary = config.evaluation, config.rollout, len(graded.tokenizer)
    facts = {"eos_token_id": graded.tokenizer.eos_token_id, "generation_eos_token_id": generation_eos(graded.folder)}
    return Sampling(own.temperature or rollout.temperature, own.top_p or rollout.top_p,
                    own.max_new_tokens or rollout.max_new_tokens, vocabulary, stop_ids(facts, vocabulary))


def _rows(asked: list[tuple[Prompt, int]], seeds: list[int], written: Generations, tokenizer, timeout_s: float):
    texts, graded_texts = written.texts(tokenizer)
    with Checker(timeout_s=timeout_s) as checker:
        for i, (problem, sample) in enumerate(asked):
            verdict = checker.check(graded_texts[i], problem.ground_truth)
            yield {"prompt_id": problem.prompt_id, "sample": sample, "data_source": problem.data_source,
                   "messages": problem.messages, "response_text": texts[i], "response_tokens": len(written.tokens(i)),
                   "finish_reason": written.finish_reasons[i], "answer": verdict.answer,
                   "ground_truth": problem.ground_truth, "correct": verdict.correct,
                   "verdict_reason": verdict.reason, "seed": seeds[i]}
