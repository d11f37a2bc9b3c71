"""`opd track RUN --to TRACKER [--set KEY=VALUE]`: show a run's committed rounds in TensorBoard, W&B, MLflow or Trackio.

What the tracker shows already stays as it is, so the command may be given at any time and as often as one likes.
"""

import json

from flows.commands.options import add_json, add_store, verb
from storage.errors import UserError


def add(verbs) -> None:
    parser = verb(verbs, "track", run, "Show a run's committed rounds in TensorBoard, W&B, MLflow or Trackio.")
    parser.add_argument("run_id", metavar="run", help="id of the run")
    parser.add_argument("--to", required=True, metavar="TRACKER", help="tensorboard, wandb, mlflow or trackio")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="a key of the config's [[tracker]], such as folder=./curves; may be repeated")
    add_store(parser)
    add_json(parser)


def run(arguments) -> int:
    from pipeline.track.feed import feed
    from pipeline.track.interface import check_libraries
    from pipeline.track.settings import tracker_of
    from storage.layout import check_run_id
    from storage.objects import open_store
    from storage.rounds import committed_rounds
    from storage.snapshot import take_snapshot
    from storage.text import printable

    tracker = tracker_of(arguments.to, arguments.set)
    store, name = open_store(arguments.store), check_run_id(arguments.run_id)
    rounds = committed_rounds(store, name)
    if not rounds:
        take_snapshot(store, name)  # says so if there is no such run
        raise UserError(f"track: no round of {name} is committed yet; `opd run` plays them")
    check_libraries([tracker])
    said = feed(store, name, rounds[-1], [tracker])[tracker.type]
    if arguments.json:
        print(json.dumps({"run": name, "rounds": len(rounds), "tracker": tracker.type, "said": said}))
    elif said == "ok":
        print(f"{tracker.type} shows {len(rounds)} rounds of {name}")
    else:
        print(printable(f"{tracker.type}: {said}"))
    return 0 if said == "ok" else 1
