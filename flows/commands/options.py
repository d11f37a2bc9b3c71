"""Options that several verbs share."""

import argparse
import os


def verb(verbs, name: str, run, help: str, **options) -> argparse.ArgumentParser:
    """Add a verb with `--debug`; `help` is one sentence."""
    parser = verbs.add_parser(name, help=help, description=help, **options)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(run=run)
    return parser


def add_store(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("OPD_STORE", "./opd-store")
    parser.add_argument("--store", default=default, help="folder or s3://bucket/prefix (default: %(default)s, or "
                                                         "what OPD_STORE names)")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
