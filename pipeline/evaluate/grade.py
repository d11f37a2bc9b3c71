"""Let a model answer held-out problems, and grade the answers: one row per answer.

    rows = grade(graded, benchmark, problems, config, role="teacher", progress=...)

All models answer under the same seeds, so that what differs between two of them is the models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.config.evaluation import Benchmark
from pipeline.config.model import Model
from pipeline.evaluate.checker import Checker
from pipeline.prompts.draw import hash63
from pipeline.prompts.pool import Prompt
from pipeline.prompts.templates import encode
from pipeline.rollout.engine import Generations, Sampling, open_engine, stop_ids
from storage import schemas


@dataclass(frozen=True)
class Graded:
    """A model to be graded: the folder it is loaded from, how it is run, and its fingerprint."""

    folder: Path
    settings: Model
    fingerprint: str


def grade(graded: Graded, benchmark: Benchmark, problems: Sequence[Prompt], config: RunConfig, *, role: str,
          progress: Callable[[str, int, int], None]) -> pa.Table:
    """Rows of the table `evaluation`, sorted by problem and sample."""
    from pipeline.models import load_tokenizer

    tokenizer = load_tokenizer(graded.folder, trust_remote_code=graded.settings.trust_remote_code)
    asked = [(problem, sample) for problem in problems for sample in range(benchmark.samples)]
    prompts = dict(zip((each.prompt_id for each in problems), encode([each.messages for each in problems], tokenizer)))
    seeds = [hash63("evaluation", config.evaluation.seed, problem.prompt_id, sample) for problem, sample in asked]
    written = open_engine(config.rollout.engine, graded.settings, graded.folder).generate(
        [prompts[problem.prompt_id] for problem, _ in asked], seeds, sampling(config, graded.folder, tokenizer),
        lambda done, total: progress(f"{role} {benchmark.name}", done, total))
    rows = _rows(asked, seeds, written, tokenizer, config.evaluation.timeout_s)
    same = {"task": benchmark.name, "model": graded.fingerprint, "role": role}
    return pa.Table.from_pylist([{**same, **row} for row in rows], schema=schemas.EVALUATION)


def sampling(config: RunConfig, folder: Path, tokenizer) -> Sampling:
    """[evaluation]'s settings where it has any, [rollout]'s where not, over the model's own vocabulary."""
    from pipeline.models.files import read_json

    own, rollout = config.evaluation, config.rollout
    file = folder / "generation_config.json"
    eos = read_json(file).get("eos_token_id") if file.exists() else None
    facts = {"eos_token_id": tokenizer.eos_token_id, "generation_eos_token_id": eos}
    return Sampling(own.temperature or rollout.temperature, own.top_p or rollout.top_p,
                    own.max_new_tokens or rollout.max_new_tokens, len(tokenizer), stop_ids(facts, len(tokenizer)))


def _rows(asked: list[tuple[Prompt, int]], seeds: list[int], written: Generations, tokenizer, timeout_s: float):
    with Checker(timeout_s=timeout_s) as checker:
        for i, (problem, sample) in enumerate(asked):
            ids = written.tokens(i).tolist()
            whole, plain = (tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
                            for skip in (False, True))
            verdict = checker.check(plain, problem.ground_truth)
            yield {"prompt_id": problem.prompt_id, "sample": sample, "data_source": problem.data_source,
                   "messages": problem.messages, "response_text": whole, "response_tokens": len(ids),
                   "finish_reason": written.finish_reasons[i], "answer": verdict.answer,
                   "ground_truth": problem.ground_truth, "correct": verdict.correct,
                   "verdict_reason": verdict.reason, "seed": seeds[i]}
