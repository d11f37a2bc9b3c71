"""Rounds written by hand: small tables whose answers can be computed on paper, committed as the product does it."""

import math
from pathlib import Path

import pyarrow as pa

from storage import layout, schemas
from storage.rounds import ContinuationShard, EvaluationShard, Plan, PlanShard, Round, create_run, put_checkpoint

K, k = 4, 2


def rollouts(responses: dict[int, list[int]], **changes) -> pa.Table:
    """One row per rollout id -> response tokens; `changes` are columns."""
    count = len(responses)
    columns = {
        "rollout_id": list(responses), "prompt_id": [7] * count, "sample": list(range(count)), "task": ["math"] * count,
        "data_source": ["made"] * count, "messages": ["[]"] * count, "ground_truth": ["1"] * count,
        "prompt_tokens": [[1, 2]] * count, "response_tokens": list(responses.values()), "response_text": [""] * count,
        "finish_reason": ["stop"] * count, "turns": [[{"start": 0, "end": len(r)}] for r in responses.values()],
        "reward": [1.0] * count, "policy_version": ["f"] * count, "engine": ["made 1"] * count,
        "sampling": [{"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8}] * count, "seed": [0] * count,
        "token_hash": ["h"] * count, "rollout_log_probs": [[-1.0] * len(r) for r in responses.values()],
        "sampling_log_probs": [[-1.0] * len(r) for r in responses.values()],
    }
    return pa.table(columns | changes, schema=schemas.ROLLOUTS)


def tokens(responses: dict[int, list[int]], **changes) -> pa.Table:
    """One row per token: both models give it .5, and .25, .125, .0625 to the tokens 101, 102, 103.

    `changes` are whole columns, in the order of the rows.
    """
    places = [(rollout, position, token) for rollout, response in responses.items()
              for position, token in enumerate(response)]
    count = len(places)
    half, quarter, rest = math.log(0.5), math.log(0.25), math.log(0.0625)
    lists = [half, quarter, math.log(0.125), rest]
    columns = {
        "rollout_id": [rollout for rollout, _, _ in places], "prompt_id": [7] * count, "task": ["math"] * count,
        "position": [position for _, position, _ in places], "token_id": [token for _, _, token in places],
        "rollout_log_prob": [half] * count, "sampling_log_prob": [half] * count, "student_log_prob": [half] * count,
        "student_entropy": [1.0] * count, "teacher_log_prob": [half] * count, "teacher_rank": [1] * count,
        "teacher_entropy": [1.0] * count, "teacher_log_tail": [rest] * count, "student_log_tail": [rest] * count,
        "teacher_topk_ids": [[token, 101, 102, 103] for _, _, token in places],
        "teacher_topk_log_probs": [lists] * count, "student_topk_ids": [[token, 101] for _, _, token in places],
        "student_topk_log_probs": [lists[:k]] * count, "teacher_log_probs_at_student_topk": [lists[:k]] * count,
        "reused_from": [None] * count,
    }
    table = columns | changes
    return pa.table(table, schema=schemas.tokens(schemas.TopK(len(table["teacher_topk_ids"][0]),
                                                              len(table["student_topk_ids"][0]))))


def mask(scored: pa.Table, weights: list[float] | None = None, reasons: list[list[str]] | None = None) -> pa.Table:
    """The mask of `scored`; nothing is masked by default."""
    count = scored.num_rows
    return pa.table({"rollout_id": scored["rollout_id"], "position": scored["position"],
                     "weight": weights or [1.0] * count, "reasons": reasons or [[]] * count}, schema=schemas.MASK)


def steps(count: int = 1, **changes) -> pa.Table:
    columns = {
        "step": list(range(1, count + 1)), "step_in_round": list(range(1, count + 1)), "loss": [0.5] * count,
        "learning_rate": [1e-6] * count, "grad_norm": [1.0] * count, "rollouts": [2] * count, "tokens": [4] * count,
        "unmasked_tokens": [4] * count, "staleness": list(range(count)), "stopped": [None] * count,
        "drift": [0.0] * count, "ess": [1.0] * count, "student_mass": [0.9] * count, "opd_reverse_kl": [0.1] * count,
        "teacher_kl": [0.2] * count, "student_entropy": [1.0] * count, "topk_left": [0.0] * count,
        "probe_tokens": [1] * count,
    }
    return pa.table(columns | changes, schema=schemas.STEPS)


def graded(role: str, verdicts: dict[int, list[bool]], task: str = "sums", **changes) -> pa.Table:
    """Graded answers of one role to one benchmark: prompt id -> verdicts of its samples; `changes` are columns."""
    places = [(prompt, sample, right) for prompt, of in verdicts.items() for sample, right in enumerate(of)]
    count = len(places)
    columns = {
        "prompt_id": [prompt for prompt, _, _ in places], "sample": [sample for _, sample, _ in places],
        "task": [task] * count, "data_source": ["made"] * count,
        "messages": ['[{"role":"user","content":"1 + 2?"}]'] * count, "model": [f"{role} weights"] * count,
        "role": [role] * count, "response_text": [f"#### {3 if right else 4}" for _, _, right in places],
        "response_tokens": [2] * count, "finish_reason": ["stop"] * count,
        "answer": ["3" if right else "4" for _, _, right in places], "ground_truth": ["3"] * count,
        "correct": [right for _, _, right in places],
        "verdict_reason": ["same number" if right else "other number" for _, _, right in places],
        "seed": list(range(count)),
    }
    return pa.table(columns | changes, schema=schemas.EVALUATION)


def continued(role: str, verdicts: dict[tuple[int, int], list[bool]], prefix_correct: dict[int, bool],
              **changes) -> pa.Table:
    """Continuations by one role: (rollout id, depth) -> verdicts of its samples, and how each rollout ended by itself;
    `changes` are columns."""
    places = [(rollout, depth, sample, right) for (rollout, depth), of in verdicts.items()
              for sample, right in enumerate(of)]
    count = len(places)
    columns = {
        "rollout_id": [rollout for rollout, _, _, _ in places], "prompt_id": [7] * count, "task": ["math"] * count,
        "depth": [depth for _, depth, _, _ in places], "role": [role] * count,
        "sample": [sample for _, _, sample, _ in places], "model": [f"{role} weights"] * count,
        "response_text": [""] * count, "response_tokens": [2] * count, "finish_reason": ["stop"] * count,
        "correct": [right for _, _, _, right in places], "verdict_reason": ["same number"] * count,
        "prefix_correct": [prefix_correct[rollout] for rollout, _, _, _ in places], "seed": list(range(count)),
    }
    return pa.table(columns | changes, schema=schemas.CONTINUATION)


def start_run(store, folder: Path, run: str = "made", tokenizer: str | None = None) -> None:
    """Put run.json and the first checkpoint, whose weights are a few bytes."""
    checkpoint = folder / f"checkpoint-{run}"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    if tokenizer:
        (checkpoint / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    files = put_checkpoint(store, run, 0, checkpoint)
    create_run(store, run, {"config": {}, "student_checkpoint": files.as_dict()})


def begin_round(store, run: str, number: int, parts: list[tuple[pa.Table, pa.Table]], answers: int = 0,
                continuations: int = 0) -> Round:
    """Plan, prompts, rollouts and scores: one shard per (rollouts, tokens); `answers` shards of evaluation planned, and
    so many `continuations`."""
    round = Round(store, run, number)
    plan_shards = [PlanShard(index, [7], [[0]]) for index in range(len(parts))]
    evaluation = [EvaluationShard(index, "student", "sums", [7]) for index in range(answers)]
    continuation = [ContinuationShard(index, "student", [7]) for index in range(continuations)]
    round.put_plan(Plan(number, 0, None, "f", plan_shards, evaluation, continuation))
    for index, (written, scored) in enumerate(parts):
        round.finish("prompts", index, "prompts", schemas.PROMPTS.empty_table(), inputs={})
        round.finish("rollout", index, "rollouts", written, inputs={})
        round.finish("score", index, "tokens", scored, inputs={}, scores="abcdef01")
    return round


def commit_round(store, folder: Path, run: str, number: int, parts: list[tuple[pa.Table, pa.Table]],
                 masks: list[pa.Table] | None = None, step_rows: pa.Table | None = None,
                 answers: list[pa.Table] = (), continuations: list[pa.Table] = (), train_facts: dict | None = None
                 ) -> Round:
    """A whole committed round; `answers` are tables of `graded`, `continuations` of `continued`."""
    round = begin_round(store, run, number, parts, len(answers), len(continuations))
    for index, rows in enumerate(continuations):
        round.finish("continuation", index, "continuation", rows, inputs={})
    for index, (_, scored) in enumerate(parts):
        round.finish("mask", index, "mask", masks[index] if masks else mask(scored), inputs={})
    checkpoint = folder / f"checkpoint-{run}-{number}"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(f"weights {number}".encode())
    round.finish("train", 0, "steps", steps() if step_rows is None else step_rows, inputs={},
                 facts=train_facts, checkpoint=put_checkpoint(store, run, number + 1, checkpoint))
    for index, rows in enumerate(answers):
        round.finish("evaluate", index, "evaluation", rows, inputs={})
    for stage in layout.STAGES:
        round.commit_stage(stage)
    round.commit()
    return round
