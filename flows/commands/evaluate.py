"""`opd evaluate`: grade on held-out problems what a round made (`--run --round`), or any model (`--model`).

    opd evaluate --model opd-store/run=gsm8k/checkpoint=2/<hash> examples/gsm8k.toml --out answers.parquet

With `--model` nothing is written to a store; the config says which problems are asked and how.
"""

import json
from collections.abc import Callable
from pathlib import Path

from flows.commands import stage
from flows.commands.options import verb
from storage.errors import UserError


def add(verbs) -> None:
    parser = verb(verbs, "evaluate", run, "Grade what a round made on held-out problems, or any model.")
    parser.add_argument("config", type=Path, nargs="?", help="with --model: whose [evaluation] is asked")
    parser.add_argument("--model", help="folder or hub name of a model to grade, instead of a round's student")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change one key; may be repeated")
    parser.add_argument("--out", type=Path, help="with --model: write one row per answer to this .parquet file")
    stage.add_options(parser, "evaluate", required=False)


def run(arguments) -> int:
    by_hand = arguments.run_id is not None and arguments.number is not None
    if by_hand == (arguments.model is not None):
        raise UserError("evaluate needs --run and --round for a round's student, or --model and a config for any model")
    if by_hand:
        _refuse(arguments, "--run and --round", {"config": "a config", "set": "--set", "out": "--out"})
        return stage.run(arguments)
    _refuse(arguments, "--model", {"run_id": "--run", "number": "--round", "shard": "--shard",
                                    "processes": "--processes"})
    if arguments.config is None:
        raise UserError("evaluate --model needs a config, whose [evaluation] names the problems")
    return grade_model(arguments)


def _refuse(arguments, mode: str, others: dict[str, str]) -> None:
    """Raise UserError for what would be ignored."""
    given = next((said for name, said in others.items() if getattr(arguments, name) not in (None, [])), None)
    if given:
        raise UserError(f"evaluate with {mode} takes no {given}: leave one of them out")


def grade_model(arguments) -> int:
    """Grade `--model` and print its accuracy by benchmark."""
    from flows.child import Child
    from flows.progress import ProgressBars
    from pipeline.config import load_config
    from storage.newfile import check_target

    config = load_config(arguments.config, arguments.set)
    if arguments.out is not None and check_target(arguments.out).suffix != ".parquet":
        raise UserError(f"evaluate --out writes Parquet: name {arguments.out.with_suffix('.parquet')}")
    with Child() as child, ProgressBars() as bars:
        found = child.call("evaluate_model", bars.bar(f"grading {arguments.model}"), model=arguments.model,
                           config=config.model_dump(mode="json"), out=arguments.out and str(arguments.out))
    if arguments.json:
        print(json.dumps(found))
    else:
        print_accuracy(found, "benchmark", lambda row: f"{row['task']}, {row['problems']} x {row['k']}")
    return 0


def print_accuracy(rows: list[dict], what: str, name_of: Callable[[dict], str], title: str | None = None) -> None:
    """Rows of the view `accuracy` as a table, with `what` as its first column. Fits into 80 characters."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column(what)
    for name in ("avg@k", "95 %", "pass@k", "95 %", "cut off"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(escape(name_of(row)), f"{row['avg_at_k']:.3f}", _interval(row, "avg_at_k"),
                      f"{row['pass_at_k']:.3f}", _interval(row, "pass_at_k"), f"{row['truncation_rate']:.1%}")
    Console().print(table)


def _interval(row: dict, name: str) -> str:
    return f"{row[f'{name}_low']:.2f}-{row[f'{name}_high']:.2f}"
