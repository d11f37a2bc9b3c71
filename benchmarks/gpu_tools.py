"""What the sections of benchmarks/gpu.py share: figures, clocks, sizes, random models and rollouts."""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from pipeline.tokens import token_hash
from storage import schemas

VOCABULARY = 151_936
SHAPES = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": VOCABULARY},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
             "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": VOCABULARY},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "tie_word_embeddings": False, "vocab_size": 152_064},
}
"""Of Qwen2.5."""
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 300}
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""bfloat16 operations per second by the data sheet, dense; SXM where there are several."""


@dataclass(frozen=True)
class Bench:
    """Where it runs, and how large."""

    device: torch.device
    tiny: bool
    notes: dict = field(default_factory=dict)
    """Goes into the JSON beside the figures."""

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def repeats(self) -> int:
        return 1 if self.tiny else 5

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def ms(self, run: Callable[[], object], repeats: int | None = None) -> float:
        """Median milliseconds of a call, after one that warms up."""
        run()
        times = []
        for _ in range(repeats or self.repeats):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            times.append(1000 * (time.perf_counter() - start))
        return statistics.median(times)

    def extra_gb(self, run: Callable[[], object]) -> float | None:
        """Most memory that a call holds above what was held before it."""
        if not self.gpu:
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        self.wait()
        return (torch.cuda.max_memory_allocated() - before) / 1e9

    def free(self) -> None:
        """Give memory back that nothing holds any more: a case's models, and what a traceback held."""
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def model(self, name: str, dtype: torch.dtype, seed: int, **changes) -> Qwen2ForCausalLM:
        """Random weights at the shape `name`, made on the device."""
        torch.manual_seed(seed)
        shape = {**(TINY if self.tiny or name == "tiny" else SHAPES[name]), **changes}
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with self.device:
                return Qwen2ForCausalLM(Qwen2Config(**shape, max_position_embeddings=4096)).eval()
        finally:
            torch.set_default_dtype(before)

    def peak(self) -> float | None:
        """Operations per second in bfloat16 by the data sheet; None for a GPU that is not in the list."""
        name = torch.cuda.get_device_name() if self.gpu else ""
        return next((rate for known, rate in PEAKS.items() if known in name), None)


@contextlib.contextmanager
def as_peers_run():
    """Any kernel may run: a stage tells torch to use deterministic ones alone, peers do not."""
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True)


def random_rollouts(prompts: int, samples: int, prompt: int, response: int, vocabulary: int) -> pa.Table:
    """`samples` responses to each of `prompts` prompts; ids are Zipf-1 distributed, lengths between half and all of
    `response`."""
    random = np.random.default_rng(0)

    def ids(size: int) -> list[int]:
        return (np.exp(random.random(size) * np.log(vocabulary)) - 1).astype(int).tolist()

    rows = []
    for index in range(prompts):
        asked = ids(prompt)
        for sample in range(samples):
            said = ids(int(random.integers(response // 2, response + 1)))
            rows.append({
                "rollout_id": len(rows) + 1, "prompt_id": index, "sample": sample, "task": "t", "data_source": "d",
                "messages": "[]", "prompt_tokens": asked, "response_tokens": said, "response_text": "",
                "finish_reason": "length", "turns": [{"start": 0, "end": len(said)}], "policy_version": "p" * 64,
                "engine": "e", "sampling": {"temperature": 1.0}, "seed": 0, "token_hash": token_hash(asked, said),
                "rollout_log_probs": [0.0] * len(said), "sampling_log_probs": [0.0] * len(said)})
    return pa.Table.from_pylist(rows, schema=schemas.ROLLOUTS)


def unmasked(tokens: pa.Table) -> pa.Table:
    """A mask table that keeps every token."""
    reasons = pa.array([[]] * len(tokens), schemas.MASK.field("reasons").type)
    ones = pa.array(np.ones(len(tokens), dtype=np.float32))
    return pa.table([tokens["rollout_id"], tokens["position"], ones, reasons], schema=schemas.MASK)


def zipf_ids(positions: int, support: int, vocabulary: int, device: torch.device) -> torch.Tensor:
    """[positions, support], distinct in each row: the first arrivals of exponential clocks whose rates follow Zipf's
    law with exponent 1, over a random order of the vocabulary."""
    rank = torch.arange(1, vocabulary + 1, dtype=torch.float32, device=device)
    chosen = [(torch.empty(min(256, positions - start), vocabulary, device=device).exponential_() * rank)
              .topk(support, largest=False).indices for start in range(0, positions, 256)]
    return torch.randperm(vocabulary, device=device)[torch.cat(chosen)]


def largest_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the largest entry; in blocks of rows, so that no third matrix of the vocabulary's size is made."""
    worst = max(((a.double() - b.double()).abs().max().item() for a, b in zip(found.split(4096), expected.split(4096))),
                default=0.0)
    return worst / max(expected.abs().max().item(), 1e-30)
