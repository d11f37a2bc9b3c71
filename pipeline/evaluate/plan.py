"""Which models a round's evaluation grades, on which problems: its shards, written into the round's plan."""

from pipeline.config import RunConfig
from pipeline.config.evaluation import Evaluation
from pipeline.evaluate.problems import planned_problems
from storage.rounds import EvaluationShard


def plan_evaluation(config: RunConfig, benchmarks: dict | None, number: int) -> list[EvaluationShard]:
    """The shards: by model, benchmark, and `per_shard` problems. `benchmarks` is what run.json records of them."""
    settings = config.evaluation
    roles = [] if settings is None else graded_roles(settings, number)
    if not roles:
        return []
    problems = planned_problems(config, benchmarks)
    parts = [(role, name, ids[start:start + settings.per_shard])
             for role in roles for name, ids in problems.items() for start in range(0, len(ids), settings.per_shard)]
    return [EvaluationShard(index, *part) for index, part in enumerate(parts)]


def graded_roles(settings: Evaluation, number: int) -> list[str]:
    """`start` and `teacher` in round 0: the two ends of the gap, which do not change. `student` every so often."""
    ends = ["start", "teacher"] if settings.teacher else ["start"]
    return (ends if number == 0 else []) + (["student"] if (number + 1) % settings.every == 0 else [])
