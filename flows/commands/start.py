"""`opd start CONFIG`: write run.json and the starting student, for stages by hand or on other machines."""

import json
from pathlib import Path

from flows.commands.options import add_json, verb


def add(verbs) -> None:
    parser = verb(verbs, "start", run, "Write run.json and the starting student of a config, nothing else.")
    parser.add_argument("config", type=Path, help="a .toml file")
    add_json(parser)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change one key; may be repeated")


def run(arguments) -> int:
    from flows.child import Child
    from flows.progress import ProgressBars
    from pipeline.config import load_config
    from storage.text import printable

    config = load_config(arguments.config, arguments.set)
    with Child() as child, ProgressBars() as bars:
        document = child.call("start", bars.bar(config.run), config=config.model_dump(mode="json"))
    if arguments.json:
        print(json.dumps(document))
        return 0
    for warning in document["vocabulary"]["warnings"]:
        print(printable(f"warning: {warning}"))
    print(f"{config.run} is in {config.store}; now: opd prompts --run {config.run} --round 0 --store {config.store}")
    return 0
