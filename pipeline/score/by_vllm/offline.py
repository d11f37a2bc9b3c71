"""A teacher in vLLM on this machine: a process of its own (process.py), kept for the shards that follow.

Arrays: N tokens, J entries listed.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config.model import Model
from pipeline.config.teachers import VllmTeacher
from pipeline.context import RoundContext
from pipeline.kept import on_drop
from pipeline.models import resolve
from pipeline.provenance import teacher_model
from pipeline.score.by_vllm.columns import ASKED_TOGETHER, Listed, entries_asked, head_rows_of
from pipeline.vllm.checks import check_devices, checked_version, visible_devices
from pipeline.vllm.messages import Arrays, flat
from pipeline.vllm.start import EngineFailed, EngineProcess, engine_options
from storage.errors import UserError

MODULE = "pipeline.score.by_vllm.process"


class LocalTeacher:
    """The teacher's weights in vLLM."""

    name = "the teacher in vLLM"

    def __init__(self, settings: VllmTeacher, model: Model, max_logprobs: int):
        import torch

        devices = visible_devices()
        check_devices(settings, len(devices), "score")
        eager = not devices if settings.enforce_eager is None else settings.enforce_eager
        self.process = EngineProcess(torch.get_num_threads(), devices[:settings.tensor_parallel], eager, MODULE)
        options = engine_options(settings, model, Path(resolve(model)).absolute(), eager, max_logprobs=max_logprobs)
        try:
            self.ready, _ = self._call("open", options, lambda done: None)
        except EngineFailed as error:
            self.close()
            raise UserError(f"score.engine.type = 'vllm' cannot hold the teacher {model.path} ({error}); raise "
                            "score.engine.cpu_kv_cache_gb (a GPU: gpu_memory_utilization), lower max_model_len, or use "
                            "another engine") from error

    def prompt_log_probs(self, sequences: list[list[int]], starts: list[int], entries: int, on_done) -> list[Listed]:
        """See Asking."""
        longest = max(map(len, sequences))
        if longest + 1 > self.ready["max_model_len"]:
            raise UserError(f"a prompt and its rollout have {longest} tokens, score.engine takes "
                            f"{self.ready['max_model_len'] - 1}: raise score.engine.max_model_len, or lower "
                            "rollout.max_new_tokens")
        _, said = self._call("read", {"entries": entries}, on_done, **flat("tokens", "lengths", sequences),
                             starts=np.array(starts, np.int64))
        counts = [len(sequence) - start for sequence, start in zip(sequences, starts)]
        return _split_up(said, counts, entries, np.concatenate([s[i:] for s, i in zip(sequences, starts)]))

    def log_probs_after(self, prefixes: list[list[int]], ids: list[int], entries: int) -> np.ndarray:
        """See Asking."""
        parts = [np.array(ids[start:start + ASKED_TOGETHER], np.int32) for start in range(0, len(ids), ASKED_TOGETHER)]
        asked = flat("tokens", "lengths", prefixes)
        said = [self._call("after", {}, lambda done: None, **asked, ids=part)[1]["log_probs"] for part in parts]
        return np.concatenate([each.reshape(len(prefixes), -1) for each in said], axis=1).astype(np.float64)

    def close(self) -> None:
        """End the process."""
        self.process.close()

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process.alive

    def _call(self, call: str, arguments: dict, on_done, **arrays: np.ndarray) -> tuple[dict, Arrays]:
        try:
            self.process.send(call, arguments, **arrays)
            while True:
                header, found = self.process.receive()
                if "done" in header:
                    return header["done"], found
                on_done(header["progress"])
        except BaseException:  # also Ctrl-C: an answer that comes too late must not reach the next call
            self.close()
            raise


def open_teacher(context: RoundContext) -> LocalTeacher:
    """The run's teacher, checked against run.json. This process keeps the last one: shards of a round share it. Another
    one is closed first."""
    recorded = (context.document["teacher"].get("scored_by") or {}).get("version")
    version = checked_version("score.engine", "scorer")
    if version != recorded:
        raise UserError(f"this run's teacher began in vLLM {recorded}, here is {version}: rounds would not be "
                        f"comparable; install vllm=={recorded}, or start another run")
    facts, shared = context.document["teacher"], context.document["vocabulary"]["shared"]
    head_rows = head_rows_of(facts, shared)
    max_logprobs = max(entries_asked(context.config.score, shared, head_rows),
                       min(head_rows - shared, ASKED_TOGETHER))
    return _open(context.config.score.engine, teacher_model(context), max_logprobs)


@dataclass
class _Opened:
    """The teacher of this process, and what it was opened for."""

    teacher: LocalTeacher
    what: tuple


_opened: _Opened | None = None


def _open(*what) -> LocalTeacher:
    global _opened
    if _opened is None or _opened.what != what or not _opened.teacher.alive:
        close()
        _opened = _Opened(LocalTeacher(*what), what)
    return _opened.teacher


def close() -> None:
    """Forget the teacher of this process, and end what belongs to it."""
    global _opened
    if _opened is not None:
        _opened.teacher.close()
    _opened = None


on_drop(close)


def _split_up(said: Arrays, counts: list[int], entries: int, token_N: np.ndarray) -> list[Listed]:
    """By sequence. The first id of each position is the token itself. Raises UserError for numbers that are none."""
    ids_NJ, log_probs_NJ = (said[name].reshape(-1, entries + 1) for name in ("ids", "log_probs"))
    if len(ids_NJ) != len(token_N) or (ids_NJ[:, 0] != token_N).any():
        raise EngineFailed("vLLM answered for other tokens than it was asked about: run the same command again")
    if not (np.isfinite(log_probs_NJ).all() and log_probs_NJ.max(initial=-1.0) <= 1e-5):
        raise UserError("the teacher in vLLM gives log-probs that are NaN, infinite or above 0: its logits are broken; "
                        "check its weights, or set teacher.dtype = 'float32'")
    whole = Listed(log_probs_NJ[:, 0].astype(np.float64), said["ranks"].astype(np.int64),
                   ids_NJ[:, 1:].astype(np.int64), log_probs_NJ[:, 1:].astype(np.float64))
    ends = np.cumsum(counts)
    return [Listed(*(getattr(whole, name)[end - count:end] for name in Listed.__dataclass_fields__))
            for end, count in zip(ends, counts)]
