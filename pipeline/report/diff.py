"""What differs between two rounds of one store, from what was asked for to what came out.

    diff(store, ("gsm8k", 3), ("gsm8k.r3.gkd.s1", 3))

The answer is plain data and complete: what is equal is in it too, marked `same`. Every section is a list of rows with
`name`, `a`, `b` and `same`; numbers have their `difference`, b - a. Rounds in progress may be compared: what is not
there yet is None. None on both sides is the same, and so is a key that one config has as null and the other lacks.
A branch's first rounds are its parent's, and so is the config that they were made with.

Names are no difference: run ids, manifest ids, and `run`, `rounds` and `store` of the config. Timings are not compared.
"""

import difflib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import zip_longest
from typing import Any

from pipeline.report.asked import Source, open_source
from pipeline.report.paired import paired
from storage import documents, layout
from storage.catalog import run_select
from storage.errors import UserError
from storage.objects import ObjectStore
from storage.records import Plan
from storage.rounds import Round, first_own_round, list_runs, owner, read_run, starting_checkpoint

Place = tuple[str, int]
"""Run and round."""
Rows = list[dict[str, Any]]
SECTIONS = ("config", "versions", "models", "inputs", "checkpoints", "plan", "shards", "masks", "metrics", "evaluation",
            "paired")
_NAMES = ("run", "rounds", "store")
"""Keys of a config that say how a run is called, how far it goes and where it lies."""
_NO_METRICS = ("run", "round", "owner", "committed", "manifest_id")
_SHARDS = "SELECT stage, shard, key, sha256 FROM shards WHERE round = $round ORDER BY stage, shard"
_ACCURACY = ("problems", "k", "avg_at_k", "avg_at_k_low", "avg_at_k_high", "pass_at_k", "pass_at_k_low",
             "pass_at_k_high")


@dataclass(frozen=True)
class Side:
    """One of the two rounds; `document` is the run.json that it was made with."""

    name: Place
    round: Round
    source: Source
    document: dict[str, Any]
    figures: dict[str, Any]
    """Its row of the view `rounds`."""

    @property
    def plan(self) -> Plan:
        return self.round.plan()

    def rows(self, name: str) -> Rows:
        return self.source.rows_of(name, self.name[1])

    def shards(self) -> dict[str, dict[int, tuple[str, str]]]:
        """Stage -> shard -> (key, sha256) of what is finished."""
        found: dict[str, dict[int, tuple[str, str]]] = {stage: {} for stage in layout.STAGES}
        for row in run_select(self.source.connection, _SHARDS, {"round": self.name[1]}).to_pylist():
            found[row["stage"]][row["shard"]] = row["key"], row["sha256"]
        return found


def diff(store: ObjectStore, a: Place, b: Place) -> dict[str, Any]:
    """{"a", "b": {run, round, owner, committed, manifest}, "same": bool, and a list of rows for each of SECTIONS}.

    Raises UserError if there is no such run or round, or if both names mean one round.
    """
    for run, _ in (a, b):
        _check_run(store, run)
    _refuse_one_round(store, a, b)
    sources = {run: open_source(store, run, None) for run in dict.fromkeys((a[0], b[0]))}
    one, other = (_side(store, place, sources[place[0]]) for place in (a, b))
    found: dict[str, Any] = {
        "config": _documents(_config(one), _config(other)),
        "versions": _documents(one.document.get("versions"), other.document.get("versions")),
        "models": _documents(_part(one, "student", "teacher", "vocabulary"),
                             _part(other, "student", "teacher", "vocabulary")),
        "inputs": _documents(_inputs(one), _inputs(other)),
        "checkpoints": _documents(_checkpoints(one), _checkpoints(other)),
        "plan": list(_plan(one.plan, other.plan)),
        "shards": list(_shards(one, other)),
        "masks": _masks(one, other),
        "metrics": _numbers(*({name: value for name, value in side.figures.items() if name not in _NO_METRICS}
                              for side in (one, other))),
        "evaluation": list(_evaluation(one, other)),
        "paired": paired(*((side.source.connection, side.name[1]) for side in (one, other)))}
    same = all(row["same"] for name in SECTIONS for row in found[name])
    return {"a": _about(one), "b": _about(other), "same": same, **found}


# --- which rounds ---


def _check_run(store: ObjectStore, run: str) -> None:
    """Raise UserError, naming near ones, if there is no such run."""
    layout.check_run_id(run)
    runs = list_runs(store)
    if run in runs:
        return
    near = difflib.get_close_matches(run, runs, n=3, cutoff=0.5)
    known = f"did you mean {' or '.join(near)}?" if near else (f"it has {', '.join(runs[:10])}" if runs else
                                                               "it has no runs yet")
    raise UserError(f"run {run} is not in the store {store.url}: {known}")


def _refuse_one_round(store: ObjectStore, a: Place, b: Place) -> None:
    if a == b:
        raise UserError(f"{a[0]}:{a[1]} is the same round twice: name two, as in {a[0]}:{a[1]} {a[0]}:{a[1] + 1}")
    owners = [owner(store, *place) for place in (a, b)]
    if a[1] == b[1] and owners[0] == owners[1]:
        branch = next(run for run, _ in (a, b) if run != owners[0])
        raise UserError(f"{a[0]}:{a[1]} and {b[0]}:{b[1]} are the same round, {owners[0]}'s: {branch} has its own "
                        f"rounds from {first_own_round(store, branch)} on; name one of these")


def _side(store: ObjectStore, place: Place, source: Source) -> Side:
    """Raises UserError if the run has no such round."""
    run, number = place
    if number not in source.committed:
        last = max(source.committed, default=None)
        known = "no rounds yet" if last is None else f"rounds 0 to {last}" if last else "round 0 alone"
        raise UserError(f"round {number} of {run} is not in the store {store.url}: it has {known}")
    round = Round(store, run, number)
    return Side(place, round, source, read_run(store, round.run), source.rows_of("rounds", number)[0])


def _about(side: Side) -> dict[str, Any]:
    return {"run": side.name[0], "round": side.name[1], "owner": side.round.run,
            "committed": side.figures["committed"], "manifest": side.figures["manifest_id"]}


# --- rows ---


def _row(name: str, a: Any, b: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "a": a, "b": b, "same": a == b and type(a) is type(b), **more}


def _documents(a: dict[str, Any] | None, b: dict[str, Any] | None) -> Rows:
    return [_row(*leaf) for leaf in leaves(a, b)]


def leaves(a: Any, b: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, a's value, b's) of two documents; a list of tables by its places, any other list as a whole."""
    given = [each for each in (a, b) if each is not None]
    if given and all(isinstance(each, dict) for each in given):
        for key in sorted({key for each in given for key in each}):
            yield from leaves((a or {}).get(key), (b or {}).get(key), f"{name}.{key}" if name else key)
    elif any(given) and all(_is_tables(each) for each in given):
        for place, (left, right) in enumerate(zip_longest(a or [], b or [])):
            yield from leaves(left, right, f"{name}[{place}]")
    else:
        yield name, a, b


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _numbers(a: dict[str, Any], b: dict[str, Any]) -> Rows:
    """Rows of two dicts of numbers, None or texts, in their order."""
    rows = [_row(name, _plain(a.get(name)), _plain(b.get(name))) for name in dict.fromkeys([*a, *b])]
    return [{**row, "difference": _difference(row["a"], row["b"])} for row in rows]


def _difference(a: Any, b: Any) -> float | int | None:
    numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (a, b))
    return b - a if numbers else None


def _plain(value: Any) -> Any:
    """What JSON can hold: None for NaN and infinities, whole decimals as integers."""
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() else float(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- what was asked for ---


def _config(side: Side) -> dict[str, Any]:
    config = side.document.get("config") or {}
    return {name: value for name, value in config.items() if name not in _NAMES}


def _part(side: Side, *names: str) -> dict[str, Any]:
    return {name: side.document.get(name) for name in names}


def _inputs(side: Side) -> dict[str, Any]:
    """What the config only names: prompts, problems, and the texts of SQL masks, these by their sha256."""
    texts = side.document.get("sql_masks") or {}
    return {**_part(side, "prompt_pool", "benchmarks", "objective_source"),
            "sql_masks": {name: documents.sha256(text.encode()) for name, text in texts.items()}}


def _checkpoints(side: Side) -> dict[str, Any]:
    """Weights by fingerprint; all files, the optimizer's and tokenizer's among them, by their folder's hash."""
    trained = side.round.receipt("train", 0)
    ends = {"in": starting_checkpoint(side.round.store, side.round.run, side.name[1]),
            "out": trained and trained.checkpoint}
    return {name: files and {"weights": files.fingerprint, "all files": files.prefix.rstrip("/").rpartition("/")[2]}
            for name, files in ends.items()}


def _plan(a: Plan, b: Plan) -> Iterator[dict[str, Any]]:
    """Rows about the plans. Lists are counted, with how many entries both plans `shared`."""
    yield _row("seed", a.seed, b.seed)
    yield _row("hidden", a.hidden, b.hidden)
    yield from _documents({"facts": a.facts}, {"facts": b.facts})
    yield _listed("prompts", *([each for shard in plan.shards for each in shard.prompt_ids] for plan in (a, b)))
    yield _listed("rollout seeds", *([(prompt, sample, seed) for shard in plan.shards
                                      for prompt, seeds in zip(shard.prompt_ids, shard.rollout_seeds)
                                      for sample, seed in enumerate(seeds)] for plan in (a, b)))
    yield _listed("evaluated problems", *([(shard.role, shard.benchmark, each) for shard in plan.evaluation
                                           for each in shard.prompt_ids] for plan in (a, b)))
    yield _listed("continued prompts", *([(shard.role, each) for shard in plan.continuation
                                          for each in shard.prompt_ids] for plan in (a, b)))


def _listed(name: str, a: list, b: list) -> dict[str, Any]:
    return {"name": name, "a": len(a), "b": len(b), "same": a == b, "shared": len(set(a) & set(b))}


# --- what came out ---


def _shards(one: Side, other: Side) -> Iterator[dict[str, Any]]:
    """A row per stage that either has: finished shards, and which of them are one file, or two of the same bytes."""
    left, right = one.shards(), other.shards()
    for stage in layout.STAGES:
        planned = [len(side.plan.shard_indices(stage)) for side in (one, other)]
        if any(planned):
            verdicts = _verdicts(left[stage], right[stage])
            yield {"name": stage, "a": len(left[stage]), "b": len(right[stage]), "a_planned": planned[0],
                   "b_planned": planned[1], **verdicts,
                   "same": not any(verdicts[each] for each in ("different", "only_a", "only_b"))}


def _verdicts(left: dict[int, tuple[str, str]], right: dict[int, tuple[str, str]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {each: [] for each in ("same_file", "same_bytes", "different", "only_a", "only_b")}
    for shard in sorted(left.keys() | right.keys()):
        if shard not in right or shard not in left:
            verdict = "only_b" if shard in right else "only_a"
        elif left[shard][0] == right[shard][0]:
            verdict = "same_file"
        else:
            verdict = "same_bytes" if left[shard][1] == right[shard][1] else "different"
        found[verdict].append(shard)
    return found


def _masks(one: Side, other: Side) -> Rows:
    """Share of tokens with weight 0, then of those that each reason touched: 0 where a mask has not given it."""
    shares: list[dict[str, Any]] = []
    for side in (one, other):
        masked = side.figures["masked_share"]
        reasons = {row["reason"]: row["share"] for row in side.rows("masked_by_reason")}
        shares.append({} if masked is None else {"weight 0": masked, **{f"reason {name}": share for name, share in
                                                                        reasons.items()}})
    names = dict.fromkeys(name for each in shares for name in each)
    return _numbers(*({name: each.get(name, 0.0) for name in names} if each else {} for each in shares))


def _evaluation(one: Side, other: Side) -> Iterator[dict[str, Any]]:
    """A row per benchmark and role that either graded; `difference` is of avg@k."""
    left, right = ({(row["role"], row["task"]): {name: row[name] for name in _ACCURACY}
                    for row in side.rows("accuracy")} for side in (one, other))
    for role, task in _ordered([*left, *right]):
        a, b = left.get((role, task)), right.get((role, task))
        yield _row(task, a, b, role=role, difference=b["avg_at_k"] - a["avg_at_k"] if a and b else None)


def _ordered(keys: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The student first, whom the round made."""
    return sorted(set(keys), key=lambda key: (key[0] != "student", key))
