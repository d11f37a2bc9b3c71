"""Rollouts by vLLM: one process per engine, kept from stage to stage and from round to round.

    engine = VllmRollouts(settings, model, folder)      # 10 to 30 s
    engine.generate(prompts, seeds, sampling)
    engine.rest()                                       # a GPU is given back
    engine.reload(other_folder)                         # the new weights: 0.03 to 0.4 s

vLLM is never imported here: it has a process of its own (vllm_process.py), which dies with this one. With
`data_parallel` > 1 there are several; the samples of a prompt go to one of them, where its prefix is cached.
"""

from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from pipeline.config.engines import VllmEngine
from pipeline.config.model import Model
from pipeline.rollout.engine import Generations, OnFinished, Sampling, checked
from pipeline.rollout.proof import prove
from pipeline.vllm.checks import check_devices, check_engine, visible_devices
from pipeline.vllm.messages import Arrays, flat
from pipeline.vllm.start import EngineFailed, EngineProcess, engine_options
from storage.errors import UserError

PROBE_TOKENS = 32
"""Tokens of each rollout of the probe set."""
Answer = tuple[dict, Arrays]
Probe = tuple[list[np.ndarray], list[np.ndarray], int]
"""Prompts, the first tokens of their rollouts, the vocabulary."""


class VllmRollouts:
    """A student in vLLM. Raises UserError where vLLM cannot be used, or cannot hold the model."""

    def __init__(self, settings: VllmEngine, model: Model, folder: Path):
        check_engine(settings)
        devices = visible_devices()
        check_devices(settings, len(devices), "rollout")
        self.settings, self.model, self.folder = settings, model, folder
        self.resting = False
        self.proof: dict | None = None
        """What proof.py measured under the present weights, and `moved` by the reload that brought them."""
        self._moved: float | None = None
        self._probe: Probe | None = None
        self._before: np.ndarray | None = None
        eager = not devices if settings.enforce_eager is None else settings.enforce_eager
        self._processes = _start(settings, devices, eager)
        self.ready: dict = self._open(engine_options(settings, model, folder, eager, gpu={"enable_sleep_mode": True}))
        self.name_and_version = "vllm {vllm} ({device}), torch {torch}".format_map(self.ready)

    def generate(self, prompts: Sequence[np.ndarray], seeds: Sequence[int], sampling: Sampling,
                 on_finished: OnFinished | None = None) -> Generations:
        """See RolloutEngine. The first rollouts under new weights are the probe set: see proof.py."""
        prompts = [np.asarray(prompt, np.int32) for prompt in prompts]
        self._check_lengths(prompts, sampling.max_new_tokens)
        finished = [0] * len(self._processes)

        def progress(engine: int, done: int) -> None:
            finished[engine] = done
            if on_finished is not None:
                on_finished(sum(finished), len(prompts))

        parts = _parts(prompts, len(self._processes))
        settings = {"temperature": sampling.temperature, "top_p": sampling.top_p, "vocabulary": sampling.vocabulary,
                    "max_new_tokens": sampling.max_new_tokens, "stop_ids": list(sampling.stop_ids)}
        arrays = {engine: {**flat("prompts", "lengths", [prompts[i] for i in part]),
                           "seeds": np.array([seeds[i] for i in part], np.int64)}
                  for engine, part in enumerate(parts) if part}
        answers = self._call("generate", {"sampling": settings}, arrays, progress)
        generations = checked(_in_order([parts[engine] for engine in arrays], [found for _, found in answers]))
        if self.proof is None and self.settings.probe_rollouts:
            self._prove(prompts, generations, parts, sampling.vocabulary)
        return generations

    def log_probs(self, prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray], vocabulary: int) -> np.ndarray:
        """float32 [engines, T]: raw log-probs of given tokens, decoded one by one as rollouts are. No cached prefix is
        read, so the same weights give the same bits."""
        arrays = flat("prompts", "lengths", prompts) | flat("responses", "sizes", responses)
        answers = self._call("log_probs", {"vocabulary": vocabulary}, dict.fromkeys(self._everywhere(), arrays))
        return np.stack([found["log_probs"] for _, found in answers])

    def reload(self, folder: Path) -> None:
        """Take the weights of `folder` in place of the present ones; both belong to one architecture.

        The last probe set's log-probs are taken again: where none moves although the weights differ, EngineFailed is
        raised.
        """
        self._call("reload", {"folder": str(folder)}, self._everywhere())
        old, self.folder, self.resting, self.proof, self._moved = self.folder, folder, False, None, None
        if self._probe is not None:
            before, self._before = self._before, self.log_probs(*self._probe)
            if np.isfinite(before).all() and np.isfinite(self._before).all():  # a diverged student says no numbers
                self._moved = float(np.abs(self._before - before).mean(axis=1).min())
                self._refuse_unmoved(old)

    def rest(self) -> None:
        """Give a GPU back; who uses the engine next reloads its weights. Nothing to do on a CPU."""
        on_gpu = self.ready["device"] != "cpu"
        if on_gpu and not self.resting and self.alive:  # one that died holds nothing, and is opened anew
            self._call("rest", {}, self._everywhere())
            self.resting = True

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.close()

    @property
    def alive(self) -> bool:
        """Whether every process runs."""
        return all(process.alive for process in self._processes)

    @property
    def pids(self) -> list[int]:
        """Of the engines' processes."""
        return [process.pid for process in self._processes]

    def _open(self, arguments: dict) -> dict:
        try:
            return self._call("open", arguments, self._everywhere())[0][0]["done"]
        except EngineFailed as error:
            said = str(error).removeprefix("vLLM failed: ")
            raise UserError(f"vLLM cannot hold {self.folder} as rollout.engine says: {said}{_advice(said)}") from error

    def _everywhere(self) -> dict[int, Arrays]:
        return {engine: {} for engine in range(len(self._processes))}

    def _refuse_unmoved(self, old: Path) -> None:
        from pipeline.models import fingerprint

        if self._moved == 0 and old.is_dir() and fingerprint(old) != fingerprint(self.folder):
            self.close()
            raise EngineFailed(f"vLLM goes on with the weights of {old} after a reload of {self.folder}: no log-prob "
                               "of the probe set moved; run the same command again with a new engine")

    def _prove(self, prompts: list[np.ndarray], generations: Generations, parts: list[list[int]],
               vocabulary: int) -> None:
        each = -(-self.settings.probe_rollouts // len(parts))
        chosen = [part[i] for part in parts for i in sorted({i * len(part) // each for i in range(each)}) if part]
        responses = [generations.tokens(i)[:PROBE_TOKENS] for i in chosen]
        log_probs = np.concatenate([generations.log_probs[generations.offsets[i]:][:len(response)]
                                    for i, response in zip(chosen, responses)])
        self._probe = [prompts[i] for i in chosen], responses, vocabulary
        try:
            self.proof = prove(self.model, self.folder, *self._probe[:2], log_probs, vocabulary)
        except EngineFailed:
            self.close()
            raise
        self._before = self.log_probs(*self._probe)
        self.proof |= {"rollouts": len(chosen)} | ({} if self._moved is None else {"moved": self._moved})

    def _check_lengths(self, prompts: list[np.ndarray], max_new_tokens: int) -> None:
        longest, window = max(len(prompt) for prompt in prompts), self.ready["max_model_len"]
        if longest + max_new_tokens > window:
            raise UserError(f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit the engine's "
                            f"{window}: raise rollout.engine.max_model_len (where it is null: the memory "
                            "for its KV cache), or lower prompts.max_prompt_tokens or rollout.max_new_tokens")

    def _call(self, call: str, arguments: dict, arrays: dict[int, Arrays],
              on_progress: Callable[[int, int], None] | None = None) -> list[Answer]:
        """Ask the engines that are named, each with its own arrays; returns their answers in that order."""
        try:
            for engine, each in arrays.items():
                self._processes[engine].send(call, arguments, **each)
            return self._answers(list(arrays), on_progress)
        except BaseException:  # also Ctrl-C: an answer that comes too late must not reach the next call
            self.close()
            raise

    def _answers(self, engines: list[int], on_progress) -> list[Answer]:
        waiting = {self._processes[engine].pipe: engine for engine in engines}
        answers: dict[int, Answer] = {}
        while waiting:
            for pipe in wait(list(waiting)):
                header, found = self._processes[waiting[pipe]].receive()
                if "done" in header:
                    answers[waiting.pop(pipe)] = header, found
                elif on_progress is not None:
                    on_progress(waiting[pipe], header["progress"])
        return [answers[engine] for engine in engines]


def _start(settings: VllmEngine, devices: list[str], eager: bool) -> list[EngineProcess]:
    import torch

    threads, each = max(1, torch.get_num_threads() // settings.data_parallel), settings.tensor_parallel
    return [EngineProcess(threads, devices[i * each:(i + 1) * each], eager) for i in range(settings.data_parallel)]


def _parts(prompts: list[np.ndarray], engines: int) -> list[list[int]]:
    """Which rollouts go to which engine: a prompt's samples to one, prompts in turn."""
    places: dict[bytes, int] = {}
    parts = [[] for _ in range(engines)]
    for i, prompt in enumerate(prompts):
        parts[places.setdefault(prompt.tobytes(), len(places)) % engines].append(i)
    return parts


def _in_order(parts: list[list[int]], answers: list[Arrays]) -> Generations:
    """The engines' rollouts in the order in which they were asked for."""
    order = np.argsort(np.concatenate(parts), kind="stable")
    joined = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
    starts = np.cumsum(joined["sizes"]) - joined["sizes"]
    sizes = joined["sizes"][order]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    tokens = np.arange(offsets[-1]) + np.repeat(starts[order] - offsets[:-1], sizes)
    return Generations(offsets, joined["token_ids"][tokens], joined["log_probs"][tokens],
                       joined["sampling_log_probs"][tokens],
                       tuple("stop" if each else "length" for each in joined["stopped"][order]))


def _advice(error: str) -> str:
    """What to change, for the refusals that are understood."""
    if any(words in error for words in ("KV cache", "kv cache", "auto-fit")):
        return "; raise rollout.engine.cpu_kv_cache_gb (a GPU: gpu_memory_utilization), or lower max_model_len"
    if "memory" in error:
        return "; lower rollout.engine.gpu_memory_utilization, end what else uses the device, or use a smaller model"
    return ""
