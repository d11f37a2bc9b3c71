"""Rollouts, scores and masks of a made-up round, computed by a slow dense loop in float64: no code of the product."""

import copy

import numpy as np
import pyarrow as pa
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from pipeline.tokens import token_hash
from storage import schemas

K, SMALL_K = 6, 4


def tiny_model(seed: int, vocab: int = 48, *, tied: bool = True, layers: int = 2, hidden: int = 16,
               pad: int | None = None, spread: float = 0.2) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied, initializer_range=spread,
        pad_token_id=pad)).eval()


@torch.no_grad()
def dense_log_probs(model, prompt: list[int], response: list[int]) -> torch.Tensor:
    """log p of every id at every response position, [response, V] in the model's dtype."""
    logits = model(input_ids=torch.tensor([prompt + response[:-1]])).logits[0, len(prompt) - 1:]
    return logits.log_softmax(-1)


def rollouts_table(count: int, seed: int, vocab: int, *, longest: int = 12, policy: str = "p" * 64,
                   zipf: bool = False) -> pa.Table:
    """Made-up prompts and responses; ids are uniform, or Zipf-1 distributed."""
    random = np.random.default_rng(seed)

    def ids(size):
        uniform = random.random(size)
        return (np.floor(np.exp(uniform * np.log(vocab))) - 1 if zipf else 1 + uniform * (vocab - 1)).astype(int)

    rows = []
    for i in range(count):
        prompt, response = ids(random.integers(2, 7)).tolist(), ids(random.integers(1, longest + 1)).tolist()
        rows.append({
            "rollout_id": int(random.integers(1, 2**62)), "prompt_id": i // 2, "sample": i % 2, "task": "t",
            "data_source": "d", "messages": "[]", "prompt_tokens": prompt, "response_tokens": response,
            "response_text": "", "finish_reason": "stop", "turns": [{"start": 0, "end": len(response)}],
            "policy_version": policy, "engine": "e", "sampling": {"temperature": 1.0}, "seed": i,
            "token_hash": token_hash(prompt, response), "rollout_log_probs": [0.0] * len(response),
            "sampling_log_probs": [0.0] * len(response)})
    return pa.Table.from_pylist(rows, schema=schemas.ROLLOUTS)


def tokens_table(rollouts: pa.Table, student, teacher, *, grid: int | None = None, dtype=torch.float64) -> pa.Table:
    """Scores of all positions inside the rollouts' turns; top-K lists are exact unless a grid is given."""
    student, teacher = (model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
                        for model in (student, teacher))
    rows = []
    for rollout in rollouts.to_pylist():
        p_TV = dense_log_probs(student, rollout["prompt_tokens"], rollout["response_tokens"])
        q_TV = dense_log_probs(teacher, rollout["prompt_tokens"], rollout["response_tokens"])
        for turn in rollout["turns"]:
            for t in range(turn["start"], turn["end"]):
                rows.append(_row(rollout, t, p_TV[t], q_TV[t], grid))
    return pa.Table.from_pylist(rows, schema=schemas.tokens(schemas.TopK(K, SMALL_K)))


def _row(rollout: dict, t: int, p_V: torch.Tensor, q_V: torch.Tensor, grid: int | None) -> dict:
    token = rollout["response_tokens"][t]
    q_K, q_ids = q_V.topk(K)
    p_k, p_ids = p_V.topk(SMALL_K)
    outside = torch.ones(len(p_V), dtype=torch.bool)
    outside[q_ids] = False

    def stored(values):
        return ((values * grid).round() / grid if grid else values).tolist()

    return {"rollout_id": rollout["rollout_id"], "prompt_id": rollout["prompt_id"], "task": "t", "position": t,
            "token_id": token, "rollout_log_prob": p_V[token].item(), "sampling_log_prob": p_V[token].item(),
            "student_log_prob": p_V[token].item(), "student_entropy": 0.0, "teacher_log_prob": q_V[token].item(),
            "teacher_rank": 1, "teacher_entropy": 0.0, "teacher_log_tail": q_V[outside].logsumexp(0).item(),
            "student_log_tail": p_V[outside].logsumexp(0).item(), "teacher_topk_ids": q_ids.tolist(),
            "teacher_topk_log_probs": stored(q_K), "student_topk_ids": p_ids.tolist(),
            "student_topk_log_probs": stored(p_k), "teacher_log_probs_at_student_topk": stored(q_V[p_ids])}


def mask_table(tokens: pa.Table, seed: int, *, masked: float = 0.25, weights=(1.0,)) -> pa.Table:
    """Weight 0 for a share of the positions, one of `weights` for the others."""
    random = np.random.default_rng(seed)
    weight = np.where(random.random(len(tokens)) < masked, 0.0, random.choice(weights, len(tokens)))
    return pa.table([tokens["rollout_id"], tokens["position"], pa.array(weight, pa.float32()),
                     pa.array([[]] * len(tokens), schemas.MASK.field("reasons").type)], schema=schemas.MASK)


def made_up_round(count: int = 9, seed: int = 0, *, vocab: int = 48, student=None, teacher=None, masked: float = 0.25,
                  weights=(1.0, 0.5), grid: int | None = None, longest: int = 12) -> tuple:
    """(rollouts, tokens, mask) of a student and a teacher, tiny random ones if none are given."""
    student, teacher = student or tiny_model(1, vocab), teacher or tiny_model(2, vocab)
    rollouts = rollouts_table(count, seed, vocab, longest=longest)
    tokens = tokens_table(rollouts, student, teacher, grid=grid)
    return rollouts, tokens, mask_table(tokens, seed, masked=masked, weights=weights)
