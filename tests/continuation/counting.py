"""Accuracy by depth counted row by row: what the catalog's view has to say, in plain loops."""

from collections.abc import Iterable


def accuracy_by_depth(rows: Iterable[dict]) -> dict[int, dict]:
    """Depth -> by model the continuations, the share of right ones, and those that changed the rollout's verdict;
    `advantage` is the teacher's share of right ones less the student's."""
    counted: dict[int, dict] = {}
    for row in rows:
        depth = counted.setdefault(row["depth"], {})
        role = depth.setdefault(row["role"], {"continuations": 0, "right": 0, "wrong_to_right": 0, "right_to_wrong": 0})
        role["continuations"] += 1
        role["right"] += row["correct"]
        role["wrong_to_right"] += row["correct"] and not row["prefix_correct"]
        role["right_to_wrong"] += row["prefix_correct"] and not row["correct"]
    for depth in counted.values():
        for role in depth.values():
            role["accuracy"] = role["right"] / role["continuations"]
        if len(depth) == 2:
            depth["advantage"] = depth["teacher"]["accuracy"] - depth["student"]["accuracy"]
    return counted
