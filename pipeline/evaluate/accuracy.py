"""How often a model answers problems right: exact match of sampled answers, with an interval.

    held_out = problems("arithmetic", seed=0, count=200, split="held_out")
    result = accuracy(Path("opd-models/quickstart-teacher"), held_out, samples=4)
    print(f"{result.mean:.2f} [{result.interval[0]:.2f}, {result.interval[1]:.2f}]")

The same model, problems and arguments give the same answers. By default the model writes as a student does in its
rounds: temperature 1, top-p .9.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path

from pipeline.config.model import GeneratedSource, Model, Prompts, Rollout
from pipeline.evaluate.answers import is_correct
from pipeline.prompts.draw import hash63
from pipeline.prompts.generated import Problem

NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Accuracy:
    """Right answers out of `total` = problems x samples."""

    correct: int
    total: int
    problems: int
    truncated: int
    """Answers that were cut off at the token limit."""

    @property
    def mean(self) -> float:
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval. It counts problems, not samples: samples of one problem are not independent."""
        return wilson(self.mean, self.problems)

    def as_dict(self) -> dict:
        """Plain data, with `mean` and `interval`."""
        return {**asdict(self), "mean": self.mean, "interval": list(self.interval)}


def accuracy(model: Model | Path, problems: Sequence[Problem], prompts: Prompts | None = None,
             rollout: Rollout | None = None, *, samples: int = 4, seed: int = 0,
             progress: Callable[[str, int, int], None] | None = None) -> Accuracy:
    """Let `model` answer every problem `samples` times and check the answers.

    `prompts` gives template and system message, `rollout` the sampling and the batch size. `progress` is called as
    ("answers", done, total).
    """
    texts, finish_reasons = _write(model, problems, prompts, rollout or Rollout(), samples, seed, progress)
    answers = [problem.answer for problem in problems for _ in range(samples)]
    return Accuracy(sum(is_correct(text, answer)[0] for text, answer in zip(texts, answers, strict=True)),
                    len(texts), len(problems), finish_reasons.count("length"))


def gap_recovery(before: float, after: float, teacher: float) -> float | None:
    """(after - before) / (teacher - before); None where there is no gap."""
    return None if teacher == before else (after - before) / (teacher - before)


def wilson(share: float, trials: int) -> tuple[float, float]:
    """95 % interval of a share of `trials` independent trials (Wilson 1927), inside [0, 1] also at 0 and 1."""
    z2 = NORMAL_95 ** 2 / trials
    centre = (share + z2 / 2) / (1 + z2)
    half = NORMAL_95 * sqrt(share * (1 - share) / trials + z2 / (4 * trials)) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def _write(model: Model | Path, problems: Sequence[Problem], prompts: Prompts | None, rollout: Rollout, samples: int,
           seed: int, progress):
    """Responses without special tokens, sample by sample within problem by problem, and why each ended."""
    from pipeline.models import load_tokenizer, resolve
    from pipeline.prompts.templates import as_json, encode, messages_of
    from pipeline.rollout.engine import open_engine

    model = model if isinstance(model, Model) else Model(path=str(model))
    folder, tokenizer = resolve(model), load_tokenizer(model)
    prompts = prompts or Prompts(source=GeneratedSource())
    messages = [as_json(messages_of(problem.question, prompts, "problems")) for problem in problems]
    prompt_ids = [ids for ids in encode(messages, tokenizer) for _ in range(samples)]
    seeds = [hash63("accuracy", seed, text, sample) for text in messages for sample in range(samples)]
    written = open_engine(rollout.engine, model, folder).generate(
        prompt_ids, seeds, _sampling(folder, tokenizer, rollout),
        None if progress is None else lambda done, total: progress("answers", done, total))
    texts = [tokenizer.decode(written.tokens(i).tolist(), skip_special_tokens=True) for i in range(len(prompt_ids))]
    return texts, list(written.finish_reasons)


def _sampling(folder: Path, tokenizer, rollout: Rollout):
    """As in a round, over the model's own vocabulary."""
    from pipeline.models.files import read_json
    from pipeline.rollout.engine import Sampling, stop_ids

    file = folder / "generation_config.json"
    eos = read_json(file).get("eos_token_id") if file.exists() else None
    facts = {"eos_token_id": tokenizer.eos_token_id, "generation_eos_token_id": eos}
    return Sampling(rollout.temperature, rollout.top_p, rollout.max_new_tokens, len(tokenizer),
                    stop_ids(facts, len(tokenizer)))
