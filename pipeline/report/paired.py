"""The same problems answered by two models: who gets right what the other gets wrong.

Two averages over the same problems vary together, so their intervals say too little about their difference: problems
on which the models differ are what tells them apart.
"""

import math
from typing import Any

from storage.catalog import run_select

_ANSWERED = """SELECT role, task, prompt_id, count(*) FILTER (correct) AS right_answers, count(*) AS answers
FROM evaluations WHERE round = $round GROUP BY role, task, prompt_id ORDER BY prompt_id"""

Answered = dict[int, tuple[int, int]]
"""Problem -> (right answers, answers)."""


def paired(a: tuple[Any, int], b: tuple[Any, int]) -> list[dict[str, Any]]:
    """A row per benchmark and role that both rounds graded, the student's first; `a` and `b` are (connection, round).

    {name: benchmark, role, problems: graded by both, both, neither: counts of problems with a right answer, only_a,
    only_b: prompt ids, a_higher, b_higher: problems with the larger share of right answers, difference: mean of b's
    share - a's, chance: of a split of these as uneven as this if neither were better, same}
    """
    left, right = _answered(*a), _answered(*b)
    rows = [_compared(*key, left[key], right[key]) for key in left.keys() & right.keys()]
    return sorted((row for row in rows if row["problems"]),
                  key=lambda row: (row["role"] != "student", row["role"], row["name"]))


def sign_test(one: int, other: int) -> float:
    """Two-sided chance that fair coins fall at least as unevenly as `one` : `other` (McNemar 1947, exact)."""
    flips = one + other
    tail = sum(math.comb(flips, each) for each in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2**flips)


def _answered(connection, number: int) -> dict[tuple[str, str], Answered]:
    found: dict[tuple[str, str], Answered] = {}
    for row in run_select(connection, _ANSWERED, {"round": number}).to_pylist():
        found.setdefault((row["role"], row["task"]), {})[row["prompt_id"]] = row["right_answers"], row["answers"]
    return found


def _compared(role: str, task: str, a: Answered, b: Answered) -> dict[str, Any]:
    problems = [each for each in a if each in b]
    shares = [(a[each][0] / a[each][1], b[each][0] / b[each][1]) for each in problems]
    a_higher, b_higher = sum(one > other for one, other in shares), sum(one < other for one, other in shares)
    return {"name": task, "role": role, "problems": len(problems),
            "both": sum(bool(a[each][0] and b[each][0]) for each in problems),
            "neither": sum(not (a[each][0] or b[each][0]) for each in problems),
            "only_a": [each for each in problems if a[each][0] and not b[each][0]],
            "only_b": [each for each in problems if b[each][0] and not a[each][0]],
            "a_higher": a_higher, "b_higher": b_higher,
            "difference": math.fsum(other - one for one, other in shares) / len(problems) if problems else None,
            "chance": sign_test(a_higher, b_higher), "same": a == b}
