"""Grade any model on a config's held-out problems, outside of any run."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import RunConfig
from pipeline.config.evaluation import Benchmark
from pipeline.context import Progress
from pipeline.evaluate.grade import Graded, grade
from pipeline.evaluate.problems import check_fits, read_benchmark
from pipeline.models import fingerprint, load_tokenizer, resolve
from pipeline.prompts.pool import Prompt
from storage.errors import UserError
from storage.newfile import new_file


def evaluate_model(config: RunConfig, model: str, out: Path | None, progress: Progress) -> list[dict]:
    """Rows of the view `accuracy`, one per benchmark; answers go to `out`. The model is run as [student] says."""
    from storage.catalog import connect_tables, query

    if config.evaluation is None:
        raise UserError("evaluate: the config has no [evaluation]: add [[evaluation.benchmark]] with a source")
    settings = config.student.model_copy(update={"path": model, "revision": None})
    folder = resolve(settings)
    graded = Graded(folder, settings, fingerprint(folder), load_tokenizer(settings))
    for benchmark in config.evaluation.benchmark:
        check_fits(benchmark, config, settings, read_benchmark(benchmark, config.prompts))
    rows = pa.concat_tables(grade(graded, each, _problems(each, config), config, role="student", progress=progress)
                            for each in config.evaluation.benchmark)
    if out is not None:
        with new_file(out) as temp:
            pq.write_table(rows, temp)
    return query(connect_tables({"evaluation": rows}),
                 "SELECT * EXCLUDE (run, round, role) FROM accuracy ORDER BY task").to_pylist()


def _problems(benchmark: Benchmark, config: RunConfig) -> list[Prompt]:
    """In the order of a round's plan: batches of the same problems give the same answers."""
    return [problem for _, problem in sorted(read_benchmark(benchmark, config.prompts).items())]
