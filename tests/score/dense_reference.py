"""The slow obvious scorer: full logits in float64, one rollout at a time, one token at a time, no code of ours.

Also builds the tiny rollout tables that the tests score.
"""

import hashlib
import math

import pyarrow as pa
import torch

from storage import schemas


def dense_scores(rollouts: list[dict], student, teacher, shared: int, K: int, k: int) -> list[dict]:
    """One dict per student-written token, in the order (prompt_id, rollout_id, position)."""
    rows = []
    for rollout in sorted(rollouts, key=lambda each: (each["prompt_id"], each["rollout_id"])):
        log_q, log_p = (dense_log_probs(model, rollout, shared) for model in (teacher, student))
        for turn in rollout["turns"]:
            for position in range(turn["start"], turn["end"]):
                at = len(rollout["prompt_tokens"]) + position - 1
                token = rollout["response_tokens"][position]
                rows.append({"rollout_id": rollout["rollout_id"], "position": position, "token_id": token,
                             **dense_row(log_q[at], log_p[at], token, K, k)})
    return rows


def dense_log_probs(model, rollout: dict, shared: int) -> torch.Tensor:
    tokens = torch.tensor([rollout["prompt_tokens"] + rollout["response_tokens"]])
    with torch.no_grad():
        return model(tokens).logits[0, :, :shared].double().log_softmax(-1)


def dense_row(log_q: torch.Tensor, log_p: torch.Tensor, token: int, K: int, k: int) -> dict:
    teacher_ids, student_ids = ordered_ids(log_q)[:K], ordered_ids(log_p)[:k]
    outside = torch.ones(len(log_q), dtype=torch.bool)
    outside[teacher_ids] = False
    return {
        "teacher_log_prob": float(log_q[token]), "student_log_prob": float(log_p[token]),
        "teacher_rank": 1 + int((log_q > log_q[token]).sum()),
        "teacher_entropy": float(-(log_q.exp() * log_q).sum()), "student_entropy": float(-(log_p.exp() * log_p).sum()),
        "teacher_log_tail": log_sum(log_q[outside]), "student_log_tail": log_sum(log_p[outside]),
        "teacher_topk_ids": teacher_ids, "teacher_topk_log_probs": log_q[teacher_ids].tolist(),
        "student_topk_ids": student_ids, "student_topk_log_probs": log_p[student_ids].tolist(),
        "teacher_log_probs_at_student_topk": log_q[student_ids].tolist(),
        "student_log_probs_at_teacher_topk": log_p[teacher_ids].tolist(),
    }


def ordered_ids(values: torch.Tensor) -> list[int]:
    """Ids by descending value, ties by lower id."""
    return torch.sort(values, descending=True, stable=True).indices.tolist()


def log_sum(log_probs: torch.Tensor) -> float:
    return float(log_probs.logsumexp(0)) if len(log_probs) else -math.inf


def make_rollouts(lengths: list[tuple[int, int]], vocabulary: int, *, seed: int = 0, samples: int = 2,
                  policy_version: str = "0" * 64) -> list[dict]:
    """Random rollouts with these (prompt, response) lengths; every third one has an environment turn inside."""
    generator = torch.Generator().manual_seed(seed)
    rollouts = []
    for index, (prompt_length, response_length) in enumerate(lengths):
        prompt, response = (torch.randint(vocabulary, (length,), generator=generator).tolist()
                            for length in (prompt_length, response_length))
        rollouts.append(rollout(index, index // samples, index % samples, prompt, response, policy_version,
                                environment=index % 3 == 2 and response_length > 6))
    return rollouts


def rollout(index: int, prompt: int, sample: int, prompt_tokens: list[int], response_tokens: list[int],
            policy_version: str, environment: bool = False) -> dict:
    length = len(response_tokens)
    turns = [{"start": 0, "end": 2}, {"start": 5, "end": length}] if environment else [{"start": 0, "end": length}]
    packed = b"".join(token.to_bytes(4, "little") for token in prompt_tokens + response_tokens)
    return {
        "rollout_id": (index * 7919) % 1009, "prompt_id": 50 - prompt, "sample": sample, "task": "math",
        "data_source": "test", "messages": "[]", "ground_truth": None, "prompt_tokens": prompt_tokens,
        "response_tokens": response_tokens, "response_text": "", "finish_reason": "stop", "turns": turns,
        "reward": None, "policy_version": policy_version, "engine": "test",
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 64}, "seed": index,
        "token_hash": hashlib.sha256(len(prompt_tokens).to_bytes(8, "little") + packed).hexdigest(),
        "rollout_log_probs": [-0.5 - position for position in range(length)],
        "sampling_log_probs": [-0.25 - position for position in range(length)],
    }


def as_table(rollouts: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rollouts, schema=schemas.ROLLOUTS)
