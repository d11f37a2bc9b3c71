"""`opd replay RUN --round N`: what would the round have come to with another objective, mask, K or seed?

    opd replay quickstart --round 1 --set objective.type=tail_bucket_topk --as tail
    opd replay quickstart --round 1 --mask none --k 16 --seed 5
    opd replay quickstart --round 1 --check
    opd replay quickstart --round 1 --sweep --seeds 0,1,2

A branch is made that shares the round's files, and the rest of the round is played: no rollout, no teacher. `--check`
writes nothing and proves that the round comes out as it was: exit code 1 if not.
"""

import json
from pathlib import Path

from flows.commands.options import add_json, add_store, verb
from storage.errors import UserError

FOLDER = Path("opd-reports")


def add(verbs) -> None:
    parser = verb(verbs, "replay", run, "Train a past round again from its cache, changed or as it was.")
    add_source(parser)
    parser.add_argument("--mask", action="append", metavar="NAME", help="instead of the run's masks: special_tokens, "
                        "detector, a name in sql/masks, a .sql file, or none; +NAME: besides them; may be repeated")
    parser.add_argument("--k", type=int, help="the same as --set objective.k=K")
    parser.add_argument("--seed", type=int, help="the same as --set seed=SEED: another order of training")
    parser.add_argument("--no-evaluation", action="store_true", help="do not grade the new student")
    parser.add_argument("--check", action="store_true", help="repeat the round as it was and compare every byte")
    parser.add_argument("--sweep", nargs="?", const="", metavar="PRESETS",
                        help="replay under many presets, a,b,c; without a value: under all that fit")
    parser.add_argument("--seeds", default="", metavar="S,S", help="with --sweep: seeds (default: the run's)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="with --sweep: folder of its table and plot "
                                                                 "(default: %(default)s)")


def add_source(parser) -> None:
    """The options of every verb that branches off a round."""
    parser.add_argument("run_id", metavar="run", help="id of the run")
    parser.add_argument("--round", required=True, type=int, dest="number", help="round, from 0")
    parser.add_argument("--as", dest="name", metavar="BRANCH", help="id of the branch (default: made from the change)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change one key; may be repeated")
    add_store(parser)
    add_json(parser)


def run(arguments) -> int:
    _refuse_contradictions(arguments)
    if arguments.check:
        return check(arguments)
    if arguments.sweep is not None:
        return sweep(arguments)
    from flows.progress import ProgressBars
    from flows.replaying import replay

    with ProgressBars() as bars:
        made = replay(arguments.store, request_of(arguments), bars.bar)
    if arguments.json:
        print(json.dumps(made))
        return 0
    print(f"{made['run']} round {made['round']} committed: {made['manifest'][:12]} (shares {shared(made)} of "
          f"{arguments.run_id})")
    print_rows(arguments, [(made["run"], None, made["run"])])
    print(f"go on with it: opd continue {made['run']} --rounds {made['round'] + 2} --store {arguments.store}")
    return 0


def request_of(arguments, *, rescore: bool = False):
    """The request that the options make."""
    from pipeline.replay.request import Request

    settings = list(arguments.set)
    settings += [f"{key}={value}" for key, value in (("objective.k", getattr(arguments, "k", None)),
                                                     ("seed", getattr(arguments, "seed", None))) if value is not None]
    return Request(arguments.run_id, arguments.number, arguments.name, settings, getattr(arguments, "mask", None),
                   not getattr(arguments, "no_evaluation", False), rescore)


def shared(made: dict) -> str:
    """The shared stages in words."""
    return ", ".join(f"{count} {stage}" for stage, count in made["shared"].items()) + " shards"


def check(arguments) -> int:
    """Repeat the round and say what agrees."""
    from flows.progress import ProgressBars
    from flows.replaying import check
    from storage.text import printable

    with ProgressBars() as bars:
        found = check(arguments.store, arguments.run_id, arguments.number, bars.bar)
    if arguments.json:
        print(json.dumps(found))
        return 0 if found["same"] else 1
    for each in found["compared"]:
        print(printable(f"{'same     ' if each['same'] else 'DIFFERENT'}  {each['what']}  {each['detail']}".rstrip()))
    how = "bit for bit" if found["device"] == "cpu" else "within the tolerance of a GPU"
    print(f"round {arguments.number} of {arguments.run_id} "
          f"{f'came out as it was, {how}' if found['same'] else 'came out otherwise'}")
    return 0 if found["same"] else 1


def sweep(arguments) -> int:
    """Play every branch of the sweep, then the table and the plot."""
    from flows.progress import ProgressBars
    from flows.replaying import replay
    from pipeline.replay.branch import requested, source_round
    from pipeline.replay.sweep import requests
    from storage.newfile import make_folder
    from storage.objects import open_store

    store = open_store(arguments.store)
    source_round(store, request_of(arguments))
    asked = list(requests(store, arguments.store, request_of(arguments), _listed(arguments.sweep),
                          _seeds(arguments, store)))
    for _, _, request in asked:
        requested(arguments.store, request)
    make_folder(arguments.out, "sweep")
    with ProgressBars() as bars:
        made = [(preset, seed, replay(arguments.store, request, bars.bar)["run"]) for preset, seed, request in asked]
    print_rows(arguments, made, write=True)
    return 0


def print_rows(arguments, branches: list[tuple], write: bool = False) -> None:
    """The table of the branches beside the round as it was, and with `write` its plot."""
    from flows.sweep_table import print_table
    from pipeline.replay.sweep import rows
    from storage.objects import open_store
    from storage.text import printable

    found = rows(open_store(arguments.store), branches, (arguments.run_id, arguments.number))
    written = {}
    if write:
        from pipeline.report.sweep import write_sweep

        written = write_sweep(found, f"Round {arguments.number} of {arguments.run_id} under other objectives",
                              arguments.out, f"{arguments.run_id}.r{arguments.number}.sweep")
    if arguments.json:
        print(json.dumps({"rows": found, "written": {kind: str(path) for kind, path in written.items()}}))
        return
    print_table(found)
    for path in written.values():
        print(printable(str(path)))


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def _seeds(arguments, store) -> list[int]:
    from storage.rounds import read_run

    try:
        return [int(each) for each in _listed(arguments.seeds)] or [read_run(store, arguments.run_id)["config"]["seed"]]
    except ValueError:
        raise UserError(f"--seeds {arguments.seeds}: whole numbers with commas between them, as in 0,1,2") from None


def _refuse_contradictions(arguments) -> None:
    changes = {"--set": arguments.set, "--mask": arguments.mask, "--k": arguments.k, "--seed": arguments.seed,
               "--as": arguments.name, "--sweep": arguments.sweep}
    given = next((name for name, value in changes.items() if value not in (None, [])), None)
    if arguments.check and given:
        raise UserError(f"replay --check repeats the round as it was, so it takes no {given}: leave one of them out")
    if arguments.seeds and arguments.sweep is None:
        raise UserError("replay --seeds is of a --sweep: for one seed use --seed")
    if arguments.sweep is not None and arguments.seed is not None:
        raise UserError("replay --sweep takes --seeds, not --seed")
    swept = next((each for each in arguments.set if each.partition("=")[0].strip() in ("seed", "objective.type")), None)
    if arguments.sweep is not None and swept:
        raise UserError(f"replay --sweep --set {swept}: presets and seeds are what is swept: name them with --sweep "
                        "and --seeds")
