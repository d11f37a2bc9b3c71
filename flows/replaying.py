"""Playing branches without Prefect: a replay is a branch and its round, a rescore a branch and its scores."""

from dataclasses import asdict

from flows.child import Child
from flows.local import ProgressFor, distill_round, play_stage
from flows.team import Team
from pipeline.config.workers import Workers
from pipeline.replay.branch import requested, source_round
from pipeline.replay.request import Request
from storage.objects import open_store
from storage.rounds import Round


def make_branch(store: str, request: Request, progress_for: ProgressFor) -> dict:
    """The branch's id, its round, and how many shards of each stage it shares with its parent. What is wrong with the
    request is mostly said before a process is started."""
    requested(store, request)
    with Child() as child:
        return child.call("branch", progress_for("branch"), store=store, request=asdict(request))


def replay(store: str, request: Request, progress_for: ProgressFor) -> dict:
    """Make the branch, or find it, and play its round to the commit."""
    made = make_branch(store, request, progress_for)
    with Team(Workers()) as team:
        return made | distill_round(store, made["run"], made["round"], progress_for, team)


def rescore(store: str, request: Request, progress_for: ProgressFor) -> dict:
    """Make the branch and score its round; mask and training wait for `opd continue`."""
    made = make_branch(store, request, progress_for)
    round = Round(open_store(store), made["run"], made["round"])
    where = {"store": store, "run": made["run"], "number": made["round"]}
    for stage in ("prompts", "rollout", "score", "hidden"):
        if pending := round.pending(stage):
            play_stage(where, stage, pending, progress_for)
        round.commit_stage(stage)
    return made | _payloads(round, made["shared"])


def _payloads(round: Round, shared: dict[str, int]) -> dict:
    """Rollouts whose teacher's columns were found or computed, null where the scores are shared; bytes per token of the
    teacher's hidden states, null without them."""
    facts = [receipt.facts for receipt in round.receipts("score")]
    counts = {name: None if "score" in shared else sum(each.get(name, 0) for each in facts)
              for name in ("reused", "scored")}
    hidden = round.receipts("hidden")
    return {**counts, "hidden_bytes_per_token": hidden[0].facts["bytes_per_token"] if hidden else None}


def check(store: str, run: str, number: int, progress_for: ProgressFor) -> dict:
    """Repeat a committed round and compare."""
    source_round(open_store(store), Request(run, number))
    with Child() as child:
        return child.call("check", progress_for(f"{run} round {number} again"), store=store, run=run, number=number)
