"""`opd run CONFIG`: play every round that is not committed. The same command starts, resumes and finds finished."""

import argparse
import json
import os
from pathlib import Path

from flows.commands.options import add_json, verb

TRAINING_DUE = 3
"""Exit code of `opd run --leave-training` where it left some."""


def add(verbs) -> None:
    parser = verb(verbs, "run", run, "Play the rounds of a config, from wherever they stand.")
    parser.add_argument("config", type=Path, help="a .toml file; write one with `opd init`")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change one key; may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and the next plan, write "
                                                               "nothing")
    parser.add_argument("--prefect", action=argparse.BooleanOptionalAction,
                        help="play through Prefect (default where PREFECT_API_URL is set)")
    parser.add_argument("--leave-training", action="store_true",
                        help="stop where a round's training is due, exit code 3: for torchrun over several machines")
    add_json(parser)


def run(arguments) -> int:
    from pipeline.config import load_config

    config = load_config(arguments.config, arguments.set)
    if arguments.dry_run:
        return dry_run(config, arguments.json)
    prefect = arguments.prefect if arguments.prefect is not None else bool(os.environ.get("PREFECT_API_URL"))
    result = play(config, prefect, arguments.leave_training)
    print_result(config, result, arguments.json)
    return TRAINING_DUE if "training_due" in result else 0


def play(config, prefect: bool, leave_training: bool = False) -> dict:
    """Play the run with or without Prefect; returns {run, played} and, where that was left, {training_due}."""
    if prefect:
        from flows.distill import distill

        return distill(config, leave_training)
    from flows.local import distill
    from flows.progress import ProgressBars

    with ProgressBars() as bars:
        return distill(config, bars.bar, leave_training)


def tracker_warnings(result: dict) -> list[str]:
    """What trackers did not get, a line each."""
    from storage.text import printable

    return [printable(f"warning: tracker {tracker} after round {played['round']}: {problem}")
            for played in result["played"] for tracker, problem in played.get("trackers", {}).items()
            if problem != "ok"]


def ended_early(config, number: int) -> str:
    """Why a committed round was trained on in part only; nothing if it was trained on to its end."""
    from storage.objects import open_store
    from storage.rounds import Round

    stopped = Round(open_store(config.store), config.run, number).receipt("train", 0).facts["stopped"]
    return "" if stopped == "done" else f" (train.{stopped} ended its training early: opd sql 'FROM trainings')"


def print_result(config, result: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    for played in result["played"]:
        print(f"round {played['round']} committed: {played['manifest'][:12]}{ended_early(config, played['round'])}")
    for warning in tracker_warnings(result):
        print(warning)
    if "training_due" in result:
        print(f"round {result['training_due']} is to be trained on: torchrun ... -m pipeline.train.ranks {config.run} "
              f"--store {config.store}; then the same command goes on")
        return
    if not result["played"]:
        print(f"{config.run}: all {config.rounds} rounds were committed already")
    print(f"{config.run} lies in {config.store}; ask it: opd sql overlap_by_round --store {config.store}")


def dry_run(config, as_json: bool) -> int:
    """Print the resolved config and the plan of the next round, having written nothing."""
    from flows.child import Child
    from flows.progress import ProgressBars
    from storage.text import printable

    with Child() as child, ProgressBars() as bars:
        found = child.call("preview", bars.bar(config.run), config=config.model_dump(mode="json"))
    if as_json:
        print(json.dumps(found))
        return 0
    for line in preview_lines(config, found):
        print(printable(line))
    return 0


def preview_lines(config, found: dict):
    """The dry run for people: TOML, with the plan as comments."""
    from pipeline.config.template import to_toml

    yield from to_toml(found["run"]["config"]).splitlines()
    yield ""
    for warning in found["run"]["vocabulary"]["warnings"]:
        yield f"# warning: {warning}"
    plan, pool = found["plan"], found["run"]["prompt_pool"]
    if plan is None:
        yield f"# all {config.rounds} rounds are committed: there is nothing to play"
    else:
        prompts = sum(len(shard["prompt_ids"]) for shard in plan["shards"])
        yield (f"# round {plan['round']} of 0 to {config.rounds - 1}: {prompts} prompts x {config.rollout.samples} "
               f"samples in {len(plan['shards'])} shards")
        yield (f"# drawn from {pool['prompts']} prompts: {pool['rows']} rows less {pool['duplicates']} duplicates and "
               f"{pool['too_long']} longer than {config.prompts.max_prompt_tokens} tokens")
        for shard in plan["shards"]:
            ids = shard["prompt_ids"]
            yield f"#   shard {shard['index']}: prompts {', '.join(map(str, ids[:3]))}{', ...' * (len(ids) > 3)}"
        for shard in plan["evaluation"]:
            yield f"# then the {shard['role']} answers {len(shard['prompt_ids'])} problems of {shard['benchmark']}"
    yield "# nothing was written"
