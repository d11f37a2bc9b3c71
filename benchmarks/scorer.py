"""The scorer against the plain loop over full logits, both models, on one CPU thread, both sides in one run:

    python -m benchmarks.scorer [--layers 6] [--dtype bfloat16] [--repeats 3]     (about two minutes, 4 GB of memory)

Two Qwen2-shaped models (d 896, V 151,936, tied head, random weights) score R rollouts of 128 prompt and 128 response
tokens: K = 32, k = 16. The plain loop is what a straightforward teacher does: model(...).logits of all rows, prompts
too, log_softmax in float32, topk, gathers, entropies and tails. Also printed: where our time goes, statistics as a
share of trunk + head, and what exact top-K costs by block maxima and by torch.topk on the same rows. Best of the
repeats counts. Writes benchmarks/results/scorer.json; exits 1 if, with the default shape, the plain loop is not 2 times
slower or the statistics cost more than a quarter of trunk + head. In float32 the head's product is all that counts.
"""

import argparse
import json
import platform
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from pipeline.config.model import Score
from pipeline.score.scorer import Scorer, Side, score_rollouts
from pipeline.score.statistics import top_k
from storage import schemas

RESULTS = Path(__file__).parent / "results" / "scorer.json"
VOCABULARY, PROMPT, RESPONSE = 151_936, 128, 128
SETTINGS = Score(teacher_top_k=32, student_top_k=16, head_rows=512)
LIMITS = {"times_faster": 2.0, "statistics_share": 0.25}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scorer", description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(arguments)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for name, value in result.items():
        print(f"{name:40} {value:.4g}" if isinstance(value, float) else f"{name:40} {value}")
    default = (arguments.layers, arguments.dtype) == (6, "bfloat16")
    missed = [result["times_faster"] < LIMITS["times_faster"], result["statistics_share"] > LIMITS["statistics_share"]]
    return int(default and any(missed))


def measure(arguments) -> dict:
    models = [random_model(arguments.layers, getattr(torch, arguments.dtype), seed) for seed in (1, 2)]
    table = random_rollouts(arguments.rollouts)
    tokens = arguments.rollouts * RESPONSE
    ours, parts = best(lambda: timed_scorer(table, models), arguments.repeats)
    plain, _ = best(lambda: timed(lambda: plain_loop(table, models)), arguments.repeats)
    logits = torch.randn(8, VOCABULARY)
    blocks, topk = (best(lambda: timed(lambda: call(logits, 32)), 10)[0] / 8 for call in (top_k, torch.topk))
    trunk_and_head = parts["hidden"] + parts["project"]
    return {
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__, "dtype": arguments.dtype,
        "layers": arguments.layers, "response_tokens": tokens, "ours_tokens_per_s": tokens / ours,
        "plain_loop_tokens_per_s": tokens / plain, "times_faster": plain / ours,
        "trunk_us_per_token": parts["hidden"] / tokens * 1e6, "head_us_per_token": parts["project"] / tokens * 1e6,
        "statistics_us_per_token": parts["_block"] / tokens * 1e6,
        "statistics_share": parts["_block"] / trunk_and_head,
        "rest_us_per_token": (ours - trunk_and_head - parts["_block"]) / tokens * 1e6,
        "top_32_by_blocks_us_per_row": blocks * 1e6, "top_32_by_torch_us_per_row": topk * 1e6,
    }


def plain_loop(table: pa.Table, models: list) -> list[tuple]:
    """Full logits of every row, one rollout at a time, and the same statistics."""
    rows = []
    for prompt, response in zip(table["prompt_tokens"].to_pylist(), table["response_tokens"].to_pylist()):
        ids = torch.tensor([prompt + response])
        with torch.inference_mode():
            log_p, log_q = (model(ids).logits[0].float().log_softmax(-1)[len(prompt) - 1:-1] for model in models)
            (top_p, ids_p), (top_q, ids_q) = log_p.topk(SETTINGS.student_top_k), log_q.topk(SETTINGS.teacher_top_k)
            token = torch.tensor(response)[:, None]
            rows.append((log_p.gather(1, token), log_q.gather(1, token), top_p, top_q, log_q.gather(1, ids_p),
                         1 + (log_q > log_q.gather(1, token)).sum(1), *(-(each.exp() * each).sum(1) for each in
                                                                         (log_p, log_q)),
                         *(each.scatter(1, ids_q, -torch.inf).logsumexp(1) for each in (log_p, log_q))))
    return rows


def timed_scorer(table: pa.Table, models: list) -> tuple[float, dict[str, float]]:
    """Seconds of one pass, and of its parts."""
    parts: dict[str, float] = {}
    with stopwatch(Side, "hidden", parts), stopwatch(Side, "project", parts), stopwatch(Scorer, "_block", parts):
        seconds, _ = timed(lambda: score_rollouts(table, *models, VOCABULARY, SETTINGS))
    return seconds, parts


@contextmanager
def stopwatch(owner: type, name: str, parts: dict[str, float]):
    """Add up the time that a method takes."""
    method = getattr(owner, name)

    def measured(*arguments):
        start = time.perf_counter()
        result = method(*arguments)
        parts[name] = parts.get(name, 0.0) + time.perf_counter() - start
        return result

    setattr(owner, name, measured)
    yield
    setattr(owner, name, method)


def timed(call) -> tuple[float, None]:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start, None


def best(measurement, repeats: int):
    """The fastest of `repeats`, after one that warms up."""
    measurement()
    return min((measurement() for _ in range(repeats)), key=lambda result: result[0])


def random_model(layers: int, dtype: torch.dtype, seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=layers, num_attention_heads=14,
        num_key_value_heads=2, vocab_size=VOCABULARY, tie_word_embeddings=True)).eval().to(dtype)


def random_rollouts(count: int) -> pa.Table:
    random = np.random.default_rng(0)
    numbers = [0.0] * RESPONSE
    return pa.Table.from_pylist([{
        "rollout_id": index, "prompt_id": index, "sample": 0, "task": "t", "data_source": "d", "messages": "[]",
        "prompt_tokens": random.integers(0, VOCABULARY, PROMPT).tolist(), "response_text": "",
        "response_tokens": random.integers(0, VOCABULARY, RESPONSE).tolist(), "finish_reason": "length",
        "turns": [{"start": 0, "end": RESPONSE}], "policy_version": "p", "engine": "e", "sampling": {}, "seed": 0,
        "token_hash": "h", "rollout_log_probs": numbers, "sampling_log_probs": numbers,
    } for index in range(count)], schema=schemas.ROLLOUTS)


if __name__ == "__main__":
    sys.exit(main())
