"""Held-out problems: what the student, the one that began the run and the teacher are graded on."""

from typing import Annotated

from pydantic import Field, field_validator

from pipeline.config.section import Count, Positive, Rate, Section, Share
from pipeline.config.sources import Source

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class Benchmark(Section):
    """One set of held-out problems. A problem that the run's prompts hold as well is refused."""

    name: Name
    """In the `task` column of `evaluations`: a-z 0-9 . _ -, at most 64."""
    source: Source
    template: str | None = None
    """User message with `{question}` in it; null: as [prompts]."""
    system: str | None = None
    """System message; null: as [prompts]."""
    samples: Positive = 4
    """Answers per problem: the k of avg@k and pass@k."""


class Evaluation(Section):
    """How models are graded: each answers every problem of every benchmark."""

    benchmark: Annotated[list[Benchmark], Field(min_length=1)]
    every: Positive = 1
    """Rounds between evaluations of the student."""
    teacher: bool = True
    """Grades the teacher too, once: without it there is no gap recovery."""
    seed: Count = 1234
    """Of the answers, apart from the run's: runs with different seeds are compared on the same draws."""
    temperature: Annotated[float, Field(ge=1e-3, strict=False)] | None = None
    """Null: as [rollout]."""
    top_p: Share | None = None
    """Null: as [rollout]."""
    max_new_tokens: Positive | None = None
    """Null: as [rollout]."""
    per_shard: Positive = 256
    """Problems per shard."""
    timeout_s: Rate = 5.0
    """Seconds for the check of one answer; after them it counts as wrong and says so."""

    @field_validator("benchmark")
    @classmethod
    def _names_differ(cls, benchmarks: list[Benchmark]) -> list[Benchmark]:
        names = [each.name for each in benchmarks]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"evaluation.benchmark: two are named {twice[0]!r}: give each its own name")
        return benchmarks
