"""vLLM's `prompt_logprobs` in a process of its own, for benchmarks.scorer.

    python -m benchmarks.scorer_vllm FOLDER K MAX_LEN      a JSON line per question on stdin, one per answer on stdout

A question holds `rollouts` (pairs of prompt and response) and `flat`; the answer the seconds of `generate`, those of
reading the numbers out of its objects, and the log-probs of the responses' tokens. Prefix caching is off: vLLM gives
no log-probs for a prefix that it has cached. Compiled, as it runs by default, and with as many threads as the scorer.
"""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_PLUGINS": "",
               "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1",
               "VLLM_USE_V2_MODEL_RUNNER": "0"}


class VllmProcess:
    """The process, seen from outside; a context manager that ends it."""

    def __init__(self, folder: Path, k: int, max_len: int, threads: int):
        if find_spec("vllm") is None:
            raise ModuleNotFoundError("vllm")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scorer_vllm", str(folder), str(k), str(max_len)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)})

    def __enter__(self):
        self._answer()
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def ask(self, rollouts: list[tuple[list[int], list[int]]], flat: bool) -> dict:
        """Score them once."""
        self._process.stdin.write(json.dumps({"rollouts": rollouts, "flat": flat}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("ANSWER "):  # vLLM may print of its own accord
                return json.loads(line.removeprefix("ANSWER "))
        raise RuntimeError(f"vLLM's process ended with exit code {self._process.wait()}")


def main(folder: str, k: str, max_len: str) -> None:
    import torch
    from vllm import LLM

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    engine = LLM(folder, skip_tokenizer_init=True, dtype="bfloat16", enable_prefix_caching=False, enforce_eager=False,
                 max_model_len=int(max_len), max_logprobs=int(k), max_num_batched_tokens=2048, max_num_seqs=16,
                 kv_cache_memory_bytes=1 << 28, block_size=128, disable_log_stats=True)
    _say({"threads": torch.get_num_threads()})
    for line in sys.stdin:
        question = json.loads(line)
        _say(score(engine, question["rollouts"], int(k), question["flat"]))


def score(engine, rollouts: list, k: int, flat: bool) -> dict:
    from vllm import SamplingParams

    asked = SamplingParams(max_tokens=1, prompt_logprobs=k, flat_logprobs=flat, temperature=0.0, detokenize=False)
    prompts = [{"prompt_token_ids": prompt + response} for prompt, response in rollouts]
    start = time.perf_counter()
    outputs = engine.generate(prompts, asked, use_tqdm=False)
    between = time.perf_counter()
    found = [_read(output.prompt_logprobs, len(prompt), response, flat)
             for output, (prompt, response) in zip(outputs, rollouts)]
    return {"seconds": between - start, "reading_s": time.perf_counter() - between,
            "log_probs": [[values[0] for values in rows] for rows in found]}


def _read(listed, first: int, response: list[int], flat: bool) -> list[list[float]]:
    """Per token of the response its log-prob, then those of the list."""
    if flat:
        starts, ends = listed.start_indices[first:], listed.end_indices[first:]
        return [listed.logprobs[start:end] for start, end in zip(starts, ends)]
    return [[entries[token].logprob, *(each.logprob for each in entries.values())]
            for entries, token in zip(listed[first:], response)]


def _say(answer: dict) -> None:
    print("ANSWER " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
