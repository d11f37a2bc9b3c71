"""`opd quickstart`: make a teacher and a weaker student, distil for some rounds, and show what it brought."""

from pathlib import Path

from flows.commands.options import verb

EXAMPLE = Path("examples/quickstart.toml")


def add(verbs) -> None:
    parser = verb(verbs, "quickstart", run, "Make a small pair, distil it in rounds, compare before and after.")
    parser.add_argument("config", type=Path, nargs="?", default=EXAMPLE, help="default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change one key; may be repeated")


def run(arguments) -> int:
    raise NotImplementedError
