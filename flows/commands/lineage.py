"""`opd lineage CHECKPOINT`: what this checkpoint learnt from, round by round, back to the base student."""

import json

from flows.commands.options import add_json, add_store, verb


def add(verbs) -> None:
    parser = verb(verbs, "lineage", run, "List every round, teacher, mask and hash behind a checkpoint.")
    parser.add_argument("checkpoint", help="a checkpoint's folder, or the start of its fingerprint")
    add_store(parser)
    add_json(parser)


def run(arguments) -> int:
    from storage.lineage import lineage
    from storage.objects import open_store
    from storage.text import printable

    found = lineage(open_store(arguments.store), arguments.checkpoint)
    if arguments.json:
        print(json.dumps(found))
        return 0
    for line in lines(found):
        print(printable(line))
    return 0


def lines(found: dict):
    """The lineage for people: a line per checkpoint and per thing it learnt from, newest first."""
    yield f"{found['checkpoint']}  fingerprint {found['fingerprint'][:12]}"
    for each in found["rounds"]:
        about = found["runs"][each["run"]]
        config, rows = about["config"], each["rows"]
        masks = ", ".join(mask["type"] for mask in config["mask"]) or "none"
        yield f"  learnt in {each['run']} round {each['round']}  manifest {each['manifest'][:12]}"
        yield (f"    from {rows['prompts']} prompts, {rows['rollouts']} rollouts, {rows['tokens']} tokens written by "
               f"{each['checkpoint_in'][:12]}")
        yield f"    under teacher {about['teacher']['path']}  fingerprint {about['teacher']['fingerprint'][:12]}"
        yield (f"    with {config['objective']['type']}, mask {masks}, {rows['steps']} optimizer steps, "
               f"{len(each['files'])} files")
    base = found["base"]
    yield f"  began as {base['student']['path']}  fingerprint {base['fingerprint'][:12]}"
