"""`opd verify`: prove that nothing changed since it was committed. Exit code 1 if anything did."""

import dataclasses
import json

from flows.commands.options import add_json, add_store, verb


def add(verbs) -> None:
    parser = verb(verbs, "verify", run, "Check every committed byte of the store against its hash.")
    parser.add_argument("--run", dest="run_id", help="only this run")
    add_store(parser)
    add_json(parser)


def run(arguments) -> int:
    from storage.objects import open_store
    from storage.text import printable
    from storage.verify import verify

    findings = verify(open_store(arguments.store), arguments.run_id)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(printable(f"{finding.key}: {finding.problem}"))
        print(f"{len(findings)} problems" if findings else "everything committed is as it was")
    return 1 if findings else 0
