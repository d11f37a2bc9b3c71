"""`opd rescore RUN --round N`: score stored rollouts with another teacher, a larger K, or hidden states kept.

    opd rescore quickstart --round 1 --set score.teacher_top_k=64 --as wide
    opd rescore quickstart --round 1 --set teacher.path=Qwen/Qwen2.5-7B-Instruct --as qwen

The scores lie in a branch that shares the rollouts; those of the run stay as they are. What the store knows of the
same tokens and the same teacher is reused. `opd continue BRANCH` masks, trains and grades; `opd replay BRANCH` tries
other objectives on it.
"""

import json

from flows.commands.options import verb
from flows.commands.replay import add_source, request_of, shared


def add(verbs) -> None:
    add_source(verb(verbs, "rescore", run, "Score a past round's rollouts with another teacher or a larger K."))


def run(arguments) -> int:
    from flows.progress import ProgressBars
    from flows.replaying import rescore

    with ProgressBars() as bars:
        made = rescore(arguments.store, request_of(arguments, rescore=True), bars.bar)
    if arguments.json:
        print(json.dumps(made))
        return 0
    print(f"{made['run']} round {made['round']} is scored (shares {shared(made)} of {arguments.run_id})")
    if made["scored"] is not None:
        print(f"teacher's columns: {made['reused']} rollouts reused, {made['scored']} scored")
    if made["hidden_bytes_per_token"] is not None:
        print(f"teacher's hidden states: {made['hidden_bytes_per_token']} bytes per token, and its head once")
    print(f"train on it: opd continue {made['run']} --store {arguments.store}")
    return 0
