"""`opd report RUN [--round N]`: write what a run, or one of its rounds, did, as HTML and markdown to read."""

import json
from pathlib import Path

from flows.commands.options import add_json, add_store, verb

FOLDER = Path("opd-reports")


def add(verbs) -> None:
    parser = verb(verbs, "report", run, "Write the report of a run or a round: one HTML file, one markdown file.")
    parser.add_argument("run_id", metavar="run", help="id of the run")
    parser.add_argument("--round", type=int, dest="number", help="this round, in more detail")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default: %(default)s)")
    add_store(parser)
    add_json(parser)


def run(arguments) -> int:
    from pipeline.report import write_report
    from storage.objects import open_store
    from storage.text import printable

    written = write_report(open_store(arguments.store), arguments.run_id, arguments.number, arguments.out)
    if arguments.json:
        print(json.dumps(written))
    else:
        for path in written.values():
            print(printable(path))
    return 0
