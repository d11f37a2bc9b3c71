"""`opd continue RUN`: go on with a run that is in the store, a branch too, by the config that lies there with it."""

import argparse
import os

from flows.commands.options import add_json, add_store, verb
from storage.errors import MissingObject, UserError


def add(verbs) -> None:
    parser = verb(verbs, "continue", run, "Go on with a run or a branch of the store, without its config file.",
                  epilog="Trackers are no part of a stored config: `opd track` shows the new rounds in them.")
    parser.add_argument("run_id", metavar="run", help="id of the run")
    parser.add_argument("--rounds", type=int, help="rounds that the run is to have (default: as it has planned)")
    parser.add_argument("--prefect", action=argparse.BooleanOptionalAction,
                        help="play through Prefect (default where PREFECT_API_URL is set)")
    add_store(parser)
    add_json(parser)


def run(arguments) -> int:
    from flows.commands.run import play, print_result

    config = stored_config(arguments.store, arguments.run_id, arguments.rounds)
    prefect = arguments.prefect if arguments.prefect is not None else bool(os.environ.get("PREFECT_API_URL"))
    print_result(config, play(config, prefect), arguments.json)
    return 0


def stored_config(store_url: str, run: str, rounds: int | None):
    """The run's config, with as many rounds as are asked for. Raises UserError if there is no such run."""
    from pipeline.config.load import validate
    from storage.objects import open_store
    from storage.rounds import read_run

    store = open_store(store_url)
    try:
        config = read_run(store, run)["config"]
    except MissingObject:
        raise UserError(f"run {run} is not in the store {store.url}: start it with `opd run CONFIG`") from None
    rounds = config["rounds"] if rounds is None else rounds
    return validate({**config, "store": store_url, "rounds": rounds}, where=f"of {run}")
