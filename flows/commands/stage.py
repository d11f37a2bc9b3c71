"""`opd prompts|rollout|score|hidden|... --run R --round N [--shard I]`: a stage by hand, without Prefect.

`opd start CONFIG` writes run.json and the student's copy, which every stage needs.
"""

import json

from flows.commands.options import add_json, add_store, verb

WHAT = {"prompts": "Draw a round's prompts.", "rollout": "Let the student write a round's rollouts.",
        "score": "Score a round's rollouts with teacher and student.",
        "hidden": "Keep the teacher's hidden states of a round's rollouts.",
        "continuation": "Let student and teacher go on from a round's rollouts, cut at chosen depths.",
        "mask": "Make a round's loss weights.",
        "train": "Train on a round's cache: the next student."}


def add(verbs) -> None:
    for stage, what in WHAT.items():
        add_options(verb(verbs, stage, run, what), stage)


def add_options(parser, stage: str, required: bool = True) -> None:
    """The options of a stage by hand."""
    parser.set_defaults(stage=stage)
    parser.add_argument("--run", required=required, dest="run_id", help="id of a run that was started")
    parser.add_argument("--round", required=required, type=int, dest="number", help="round, from 0")
    parser.add_argument("--shard", type=int, help="only this shard (default: all that have no receipt)")
    parser.add_argument("--processes", type=int, help="shards computed side by side (default: one for each GPU)")
    add_store(parser)
    add_json(parser)


def run(arguments) -> int:
    from flows.child import Child
    from flows.local import play_stage
    from flows.progress import ProgressBars
    from pipeline.stages import check_round, check_shard, commit_finished
    from storage.objects import open_store
    from storage.rounds import Round

    round = Round(open_store(arguments.store), arguments.run_id, arguments.number)
    check_round(round)
    where = {"store": arguments.store, "run": arguments.run_id, "number": arguments.number}
    with ProgressBars() as bars:
        if not round.planned() and arguments.stage == "prompts":
            with Child() as child:
                child.call("plan", bars.bar(f"round {arguments.number} plan"), **where)
        check_shard(round, arguments.stage, arguments.shard)
        shards = [arguments.shard] if arguments.shard is not None else round.pending(arguments.stage)
        done = play_stage(where, arguments.stage, shards, bars.bar, workers_of(arguments))
    committed = commit_finished(round, arguments.stage)
    _print(arguments, done, committed)
    return 0


def workers_of(arguments):
    """The [workers] that a stage by hand has. Raises UserError for a number that is none."""
    from pipeline.config.workers import Workers
    from storage.errors import UserError

    if arguments.processes is not None and arguments.processes < 1:
        raise UserError(f"--processes {arguments.processes} is no number of processes: use 1 or more")
    return Workers(processes=arguments.processes)


def _print(arguments, done: list[dict], committed: bool) -> None:
    if arguments.json:
        print(json.dumps({"stage": arguments.stage, "committed": committed, "shards": done}))
        return
    for shard in done:
        print(f"{shard['stage']} {shard['shard']}: {shard['rows']} rows, {shard['bytes']} bytes")
    print(f"{arguments.stage} of round {arguments.number}: {'committed' if committed else 'shards are missing'}")
