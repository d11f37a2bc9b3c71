"""The process that holds a teacher in vLLM, and everything of vLLM that is imported for scoring.

    python -P -m pipeline.score.by_vllm.process FD

Calls come through the socket FD as for rollouts (pipeline/rollout/vllm_process.py), answered by `done` or `error`:

    open      load the weights of a folder; answers what runs
    read      log-probs of given tokens and of the likeliest ids beside them; `progress` messages in between
    after     log-probs of given ids behind given prefixes

Flat log-probs: vLLM then makes no object per token and id. No prefix caching: a cached prefix has no log-probs.
"""

from multiprocessing.connection import Connection

import numpy as np

from pipeline.vllm.messages import Arrays
from pipeline.vllm.reload import model_alone
from pipeline.vllm.serving import main, outputs, split


class Teacher:
    """One engine, from its start to the end of the process."""

    def __init__(self, pipe: Connection, folder: str, options: dict, cpu: dict, gpu: dict):
        import torch
        import vllm
        from vllm import EngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine

        on_cpu = current_platform.is_cpu()
        self.pipe, self.requests = pipe, 0
        with model_alone(folder) as alone:
            self.engine = LLMEngine.from_engine_args(EngineArgs(
                model=alone, tokenizer=alone, skip_tokenizer_init=True, load_format="safetensors",
                generation_config="vllm", enable_prefix_caching=False, logprobs_mode="raw_logprobs",
                disable_log_stats=True, **options, **(cpu if on_cpu else gpu)))
        self.ready = {"device": "cpu" if on_cpu else current_platform.device_type, "vllm": vllm.__version__,
                      "torch": torch.__version__, "max_model_len": self.engine.model_config.max_model_len,
                      "prefix_caching": self.engine.vllm_config.cache_config.enable_prefix_caching}

    def read(self, arrays: Arrays, entries: int) -> Arrays:
        """For every token of `tokens` (lengths in `lengths`) from each one's `starts` on: 1 + entries ids, their
        log-probs, the first the token itself, and its rank."""
        from vllm import SamplingParams

        asked = [SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=entries, flat_logprobs=True,
                                detokenize=False) for _ in arrays["lengths"]]
        answers = self._outputs(split(arrays["tokens"], arrays["lengths"]), asked)
        parts = [_numbers(each.prompt_logprobs, start, entries) for each, start in zip(answers, arrays["starts"])]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def after(self, arrays: Arrays) -> Arrays:
        """Log-probs of `ids` behind every prefix, one prefix after the other."""
        from vllm import SamplingParams

        ids = arrays["ids"].tolist()
        asked = [SamplingParams(max_tokens=1, temperature=1.0, logprobs=len(ids), logprob_token_ids=ids,
                                detokenize=False) for _ in arrays["lengths"]]
        answers = self._outputs(split(arrays["tokens"], arrays["lengths"]), asked)
        return {"log_probs": np.array([each.outputs[0].logprobs[0][token_id].logprob for each in answers
                                       for token_id in ids], np.float32)}

    def _outputs(self, prompts: list[list[int]], asked: list) -> list:
        first, self.requests = self.requests, self.requests + len(prompts)
        return outputs(self.engine, self.pipe, first, prompts, asked)


def _numbers(flat, start: int, entries: int) -> Arrays:
    """From vLLM's FlatLogprobs: the first position, which nothing predicts, has no entry, all others 1 + entries."""
    offset = (int(start) - 1) * (entries + 1)
    return {"ids": np.array(flat.token_ids[offset:], np.int32),
            "log_probs": np.array(flat.logprobs[offset:], np.float32),
            "ranks": np.array(flat.ranks[offset::entries + 1], np.int32)}


if __name__ == "__main__":
    main(Teacher)
