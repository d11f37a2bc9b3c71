"""The process that holds one vLLM engine, and everything of vLLM that is imported.

    python -P -m pipeline.rollout.vllm_process FD

FD is an inherited socket; what comes through it: pipeline/vllm/messages.py. Calls, each answered by `done` or
by `error` with one line:

    open       load the weights of a folder; answers what runs
    reload     take the weights of another folder in place, and forget every cached prefix
    rest       give the device back (a GPU; a CPU has no sleep mode)
    generate   one rollout per prompt and seed; `progress` messages in between
    log_probs  raw log-probs of given tokens, decoded one by one as rollouts are

The process ends when the other side of the socket does, however that ends. It ignores Ctrl-C: its parent decides.
The engine's core runs in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0): one process to start, to watch and to kill.
"""

from multiprocessing.connection import Connection

import numpy as np

from pipeline.vllm.messages import Arrays
from pipeline.vllm.reload import model_alone
from pipeline.vllm.serving import main, outputs, split


class Served:
    """One engine, from its start to the end of the process."""

    def __init__(self, pipe: Connection, folder: str, options: dict, cpu: dict, gpu: dict):
        import torch
        import vllm
        from vllm import EngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine

        self.pipe, self.on_cpu, self.asleep, self.requests = pipe, current_platform.is_cpu(), False, 0
        with model_alone(folder) as alone:
            self.engine = LLMEngine.from_engine_args(EngineArgs(
                model=alone, tokenizer=alone, skip_tokenizer_init=True, load_format="safetensors",
                generation_config="vllm", enable_prefix_caching=True, logprobs_mode="processed_logits", max_logprobs=2,
                logits_processors=["pipeline.rollout.vllm_draw:Draw"], disable_log_stats=True,
                worker_extension_cls="pipeline.vllm.reload.TakesWeights", **options,
                **(cpu if self.on_cpu else gpu)))
        self.ready = {"device": "cpu" if self.on_cpu else current_platform.device_type, "vllm": vllm.__version__,
                      "torch": torch.__version__, "max_model_len": self.engine.model_config.max_model_len,
                      "prefix_caching": self.engine.vllm_config.cache_config.enable_prefix_caching}

    def reload(self, folder: str) -> None:
        """Put the weights of `folder` in the place of the present ones."""
        if self.asleep:
            self.engine.wake_up(tags=["weights"])
        self.engine.collective_rpc("take_weights", args=(folder,))
        if self.asleep:
            self.engine.wake_up(tags=["kv_cache"])
            self.asleep = False
        if not self.engine.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be reset")

    def rest(self) -> None:
        """Free the device's memory, weights included."""
        if not self.on_cpu and not self.asleep:
            self.engine.sleep(level=2)
            self.asleep = True

    def generate(self, arrays: Arrays, sampling: dict) -> Arrays:
        """Rollouts of `prompts` [sum of lengths], one per entry of `lengths` and `seeds`."""
        from pipeline.rollout.vllm_draw import params

        common = (sampling["temperature"], sampling["top_p"], sampling["vocabulary"])
        asked = [params(int(seed), *common, max_tokens=sampling["max_new_tokens"], ignore_eos=True,
                        stop_token_ids=sampling["stop_ids"]) for seed in arrays["seeds"]]
        return self._answers(split(arrays["prompts"], arrays["lengths"]), asked)

    def log_probs(self, arrays: Arrays, vocabulary: int) -> Arrays:
        """The same for given `responses` (lengths in `sizes`), drawn as they are whatever their probability."""
        from pipeline.rollout.vllm_draw import params

        responses = split(arrays["responses"], arrays["sizes"])
        asked = [params(0, 1.0, 1.0, vocabulary, forced=response, max_tokens=len(response), ignore_eos=True,
                        skip_reading_prefix_cache=True)
                 for response in responses]
        return self._answers(split(arrays["prompts"], arrays["lengths"]), asked)

    def _answers(self, prompts: list[list[int]], asked: list) -> Arrays:
        first, self.requests = self.requests, self.requests + len(prompts)
        return _flat([each.outputs[0] for each in outputs(self.engine, self.pipe, first, prompts, asked)])


def _flat(outputs: list) -> Arrays:
    """vLLM gives three numbers per token: of the drawn one, of the best (the same), and of the one beside."""
    from pipeline.rollout.vllm_draw import read

    numbers = np.concatenate([np.array(each.logprobs.logprobs, np.float32).reshape(-1, 3) for each in outputs])
    raw, sampling = read(numbers[:, 0], numbers[:, 2])
    return {"token_ids": np.concatenate([np.array(each.token_ids, np.int32) for each in outputs]),
            "sizes": np.array([len(each.token_ids) for each in outputs], np.int64),
            "log_probs": raw, "sampling_log_probs": sampling,
            "stopped": np.array([each.finish_reason == "stop" for each in outputs], np.uint8)}


if __name__ == "__main__":
    main(Served)
