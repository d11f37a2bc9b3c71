"""`opd quickstart`: make a small teacher and a weaker student, distil in rounds, and show what it brought."""

import importlib.resources
import json
import os
import shlex
import sys
from itertools import groupby
from pathlib import Path

from flows.commands.options import add_json, verb
from storage.errors import UserError

TRY = {
    "how close they came, round by round":
        "SELECT round, mean_gap, overlap_ratio, avg_at_k, gap_recovery FROM rounds ORDER BY round",
    "where in an answer they disagreed most at first":
        "SELECT position, count(*) AS tokens, avg(gap) AS gap FROM tokens WHERE round = 0 "
        "GROUP BY position HAVING tokens > 50 ORDER BY gap LIMIT 8",
    "which tokens the student writes and its teacher would not":
        "SELECT token_text, count(*) AS n, avg(gap) AS gap FROM tokens JOIN vocabulary USING (run, token_id) "
        "GROUP BY token_text HAVING n > 50 ORDER BY gap LIMIT 8",
}
"""What it tells -> SQL."""


def add(verbs) -> None:
    parser = verb(verbs, "quickstart", run, "Make a small pair, distil it in rounds, compare before and after.")
    parser.add_argument("config", type=Path, nargs="?", default=packaged_config(),
                        help="default: pipeline/quickstart/quickstart.toml of the package")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change one key; may be repeated")
    parser.add_argument("--report", type=Path, default=Path("opd-reports"), metavar="FOLDER",
                        help="where the report is written (default: %(default)s)")
    add_json(parser)


def packaged_config() -> Path:
    """The quickstart's config, which comes with the package."""
    return Path(str(importlib.resources.files("pipeline.quickstart") / "quickstart.toml"))


def run(arguments) -> int:
    from flows.child import Child
    from flows.commands.run import play, tracker_warnings
    from flows.progress import ProgressBars
    from pipeline.config import load_config

    config = load_config(arguments.config, arguments.set)
    folder = pair_folder(config)
    if config.evaluation is None or not config.evaluation.teacher:
        raise UserError("quickstart compares before and after: its config needs an [evaluation] with the teacher in it")
    say(f"1/3  a teacher and a weaker student, in {folder} (made once, then found again)")
    with Child() as child, ProgressBars() as bars:
        child.call("make_pair", bars.bar("pair"), folder=str(folder), seed=config.seed, threads=config.threads)
    say(f"2/3  {config.rounds} rounds of {config.prompts.per_round} problems x {config.rollout.samples} answers: the "
        "student writes, the teacher scores, the student learns")
    result = play(config, bool(os.environ.get("PREFECT_API_URL")))
    for warning in tracker_warnings(result):
        say(warning)
    say("3/3  what it brought")
    found = closing(config, arguments.report)
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


def closing(config, folder: Path) -> dict:
    """Rows of the saved report `accuracy_by_round`, the gap recovery, and where the written report lies."""
    from pipeline.report import write_report
    from storage.catalog import connect, query
    from storage.objects import open_store
    from storage.snapshot import take_snapshot
    from storage.sqlfiles import load

    store = open_store(config.store)
    connection = connect(store, take_snapshot(store, config.run))
    recovered = query(connection, "SELECT max_by(gap_recovery, round) AS latest FROM rounds").to_pylist()
    return {"accuracy": query(connection, load("reports", "accuracy_by_round").text).to_pylist(),
            "gap_recovery": recovered[0]["latest"],
            "report": {kind: str(path) for kind, path in write_report(store, config.run, None, folder).items()}}


def print_closing(config, found: dict) -> None:
    """The closing table, the report, and three questions to ask next."""
    from flows.commands.evaluate import print_accuracy

    for task, rows in groupby(found["accuracy"], lambda row: row["task"]):
        rows = list(rows)
        print_accuracy(rows, "", lambda row: {"start": "student before", "teacher": "teacher"}.get(
            row["role"], f"student after round {row['round']}"),
            title=f"{task}: right answers to {rows[0]['problems']} held-out problems, {rows[0]['k']} each")
    if found["gap_recovery"] is not None:
        print(f"gap recovery: {found['gap_recovery']:.2f} of the way from the student to its teacher")
    print(f"report: {found['report']['html']}")
    print("\nask the cache:")
    store = "" if config.store == "./opd-store" else f" --store {shlex.quote(config.store)}"
    for what, sql in TRY.items():
        print(f'  # {what}\n  opd sql "{sql}" --run {config.run}{store}')


def say(text: str) -> None:
    """A heading of the story, on stderr: stdout is for the result."""
    print(text, file=sys.stderr, flush=True)
