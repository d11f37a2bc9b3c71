"""A branch's held-out problems, as the store holds them: those that its parent's starting student was graded on.

So a branch needs no data set: what it is graded on is what every run of its family was, by hash.
"""

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.evaluation import Benchmark
from pipeline.context import RoundContext
from pipeline.evaluate.problems import planned_problems, read_benchmark
from pipeline.prompts.pool import Prompt, ids_sha256
from storage.errors import IntegrityError
from storage.rounds import Round

COLUMNS = ("prompt_id", "sample", "task", "data_source", "messages", "ground_truth")


def held_out(context: RoundContext, benchmark: Benchmark) -> dict[int, Prompt]:
    """Problems of a benchmark by id: exactly those that run.json records."""
    branch = context.document["branch"]
    if branch:
        rows = _graded_at_the_start(Round(context.store, branch["run"], 0), benchmark.name)
        if rows is not None:
            return _problems(rows, context, benchmark)
    planned_problems(context.config, context.document["benchmarks"])  # they are still those of the plan
    return read_benchmark(benchmark, context.config.prompts)


def _graded_at_the_start(first: Round, name: str) -> pa.Table | None:
    """Rows of the starting student on a benchmark; None where the first round has not graded it yet."""
    shards = [shard.index for shard in first.plan().evaluation if (shard.role, shard.benchmark) == ("start", name)]
    if not shards or not all(first.receipt("evaluate", shard) for shard in shards):
        return None
    rows = pa.concat_tables([first.read("evaluate", shard, COLUMNS) for shard in shards])
    return rows.filter(pc.equal(rows["sample"], 0))


def _problems(rows: pa.Table, context: RoundContext, benchmark: Benchmark) -> dict[int, Prompt]:
    found = {row["prompt_id"]: Prompt(row["prompt_id"], row["task"], row["data_source"], -1, row["messages"],
                                      row["ground_truth"], None) for row in rows.to_pylist()}
    if ids_sha256(sorted(found)) != context.document["benchmarks"][benchmark.name]["sha256"]:
        raise IntegrityError(f"benchmark {benchmark.name}: the problems in the first round of {context.run} are not "
                             "those that its run.json records; run `opd verify`", "foreign")
    return found
