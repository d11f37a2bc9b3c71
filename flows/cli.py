"""The command `opd`. Every verb is a module of flows/commands with `add(subparsers)` and `run(arguments)`.

Nothing heavy is imported before a verb needs it: `opd --help` takes a tenth of a second. A user's error is one line on
stderr and exit code 2, any other failure one line and exit code 1, Ctrl-C exit code 130; `--debug` adds the traceback.
"""

import argparse
import os
import sys
import traceback

from flows.commands import (
    catalog,
    diff,
    doctor,
    evaluate,
    init,
    lineage,
    quickstart,
    replay,
    report,
    rescore,
    resume,
    run,
    serve,
    sql,
    stage,
    start,
    track,
    verify,
)
from storage.errors import OpdError, UserError
from storage.text import printable

VERBS = (quickstart, init, doctor, run, serve, resume, replay, rescore, start, stage, evaluate, report, diff, track,
         sql, catalog, verify, lineage)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    arguments = parser().parse_args(argv)
    try:
        code = arguments.run(arguments) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `opd sql ... | head`: a child's broken pipe is a ChildFailed
        sys.stdout = open(os.devnull, "w")
        return 0
    except KeyboardInterrupt:
        print("opd: interrupted; the store is whole, the same command goes on from here", file=sys.stderr)
        return 130
    except OpdError as error:
        return _fail(error, arguments.debug, 2 if isinstance(error, UserError) else 1)
    except Exception as error:  # a bug: still one line, and how to see more
        return _fail(error, arguments.debug, 1)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="opd", description="On-policy distillation in rounds over a cache.")
    top.set_defaults(debug=False)
    verbs = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for verb in VERBS:
        verb.add(verbs)
    return top


def _fail(error: Exception, debug: bool, code: int) -> int:
    if debug:
        traceback.print_exception(error)
        print(getattr(error, "child_traceback", ""), file=sys.stderr)
    kind = "" if isinstance(error, OpdError) else f"{type(error).__name__}: "
    hint = "" if debug or code == 2 else " (--debug shows where)"
    print(f"opd: {kind}{printable(str(error))}{hint}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
