"""`opd quickstart`: make a small teacher and a weaker student, distil in rounds, and show what it brought."""

import json
import os
from pathlib import Path

from flows.commands.options import add_json, verb
from storage.errors import UserError

EXAMPLE = Path("examples/quickstart.toml")
TRY = ("overlap_by_round", "gap_by_position", "worst_tokens")


def add(verbs) -> None:
    parser = verb(verbs, "quickstart", run, "Make a small pair, distil it in rounds, compare before and after.")
    parser.add_argument("config", type=Path, nargs="?", default=EXAMPLE, help="default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change one key; may be repeated")
    add_json(parser)


def run(arguments) -> int:
    from flows.child import Child
    from flows.commands.run import play
    from flows.progress import ProgressBars
    from pipeline.config import load_config

    config = load_config(arguments.config, arguments.set)
    plain = config.model_dump(mode="json")
    with Child() as child, ProgressBars() as bars:
        child.call("make_pair", bars.bar("making the pair"), folder=str(pair_folder(config)), seed=config.seed,
                   threads=config.threads)
    play(config, bool(os.environ.get("PREFECT_API_URL")))
    with Child() as child, ProgressBars() as bars:
        found = child.call("closing", bars.bar("held-out problems"), config=plain)
    if arguments.json:
        print(json.dumps(found))
    else:
        print_closing(config, found)
    return 0


def pair_folder(config) -> Path:
    """The folder that holds both of the quickstart's models. Raises UserError for a config of other models."""
    from pipeline.quickstart.pair import STUDENT, TEACHER

    student, teacher = Path(config.student.path), Path(config.teacher.path)
    if student.parent != teacher.parent or (student.name, teacher.name) != (STUDENT, TEACHER):
        raise UserError(f"quickstart makes its own models: student.path and teacher.path must be {STUDENT} and "
                        f"{TEACHER} in one folder; for other models use `opd run`")
    return student.parent


def print_closing(config, found: dict) -> None:
    """The closing table, and three questions to ask next."""
    from rich.console import Console
    from rich.table import Table

    asked = found["before"]
    table = Table(title=f"exact match on {asked['problems']} held-out problems x "
                        f"{asked['total'] // asked['problems']} samples")
    table.add_column("")
    for name in ("accuracy", "95 % interval", "cut off"):
        table.add_column(name, justify="right")
    for name, key in (("student before", "before"), (f"student after {found['rounds']} rounds", "after"),
                      ("teacher", "teacher")):
        one = found[key]
        table.add_row(name, f"{one['mean']:.3f}", "{:.3f} to {:.3f}".format(*one["interval"]),
                      f"{one['truncated'] / one['total']:.1%}")
    Console().print(table)
    if found["gap_recovery"] is not None:
        print(f"gap recovery: {found['gap_recovery']:.2f} of the way from the student to its teacher")
    print("\nask the cache:")
    for report in TRY:
        print(f"  opd sql {report} --store {config.store}")
