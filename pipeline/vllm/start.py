"""The process of one vLLM engine, seen from outside: started with an environment of its own, asked, and ended.

    process = EngineProcess(threads=2, devices=["0"], eager=False)
    process.send("open", engine_options(settings, model, folder, eager=False))
    header, arrays = process.receive()

What it logs goes to a file that has no name, read only to say why a process died.
"""

import os
import socket
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from pipeline.config.engines import VllmEngine
from pipeline.config.model import Model
from pipeline.config.teachers import VllmTeacher
from pipeline.vllm.messages import Arrays, receive, send
from storage.errors import OpdError
from storage.text import printable

CPU_BLOCK = 32
"""Tokens of a block of the KV cache. With vLLM's 128 for a CPU, short prompts would share nothing."""
WAIT_S = 5
"""For a process whose pipe was closed; then it is killed."""
NOT_INHERITED = {"VLLM_CPU_KVCACHE_SPACE", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}
"""The first would overrule the config; vLLM's sleep does not work with the expandable segments of the others."""


class EngineFailed(OpdError, RuntimeError):
    """An engine's process is gone, gave up a call, or does not have the weights it should; a retry starts another."""


class EngineProcess:
    """One process of pipeline/rollout/vllm_process.py (or of `module`); it ends when this one does."""

    def __init__(self, threads: int, devices: list[str], eager: bool, module: str = "pipeline.rollout.vllm_process"):
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
                env=environment(threads, devices, eager))
        self.pipe = Connection(ours.detach())

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs and was not closed."""
        return not self.pipe.closed and self._process.poll() is None

    def send(self, call: str, arguments: dict, **arrays: np.ndarray) -> None:
        """Ask something. Raises EngineFailed."""
        try:
            send(self.pipe, {"call": call, "arguments": arguments}, **arrays)
        except OSError:
            raise self._death() from None

    def receive(self) -> tuple[dict, Arrays]:
        """Its next message. Raises EngineFailed, also for a call that failed there."""
        try:
            header, arrays = receive(self.pipe)
        except (EOFError, OSError):
            raise self._death() from None
        if "error" in header:
            raise EngineFailed(f"vLLM failed: {printable(header['error'])}")
        return header, arrays

    def close(self) -> None:
        """End the process, whatever it is doing, and wait for it."""
        if self.pipe.closed:
            return
        self.pipe.close()
        try:
            self._process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _death(self) -> EngineFailed:
        self._process.wait()
        if self._log.closed:
            return EngineFailed("vLLM's process has ended; what is finished is kept, run the same command again")
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 300))
        said = printable(" ".join(self._log.read().decode(errors="replace").split()))
        code = self._process.returncode
        why = "killed, perhaps for want of memory" if code == -9 else f"exit code {code}"
        return EngineFailed(f"vLLM's process died ({why}); what is finished is kept, run the same command again; it "
                            f"last said: {said or 'nothing'}")


def engine_options(settings: VllmEngine | VllmTeacher, model: Model, folder: Path, eager: bool, *,
                   gpu: dict | None = None, **options) -> dict:
    """What `open` is told: vLLM's arguments, those for a CPU and those for a GPU apart; more of them as keywords."""
    options |= {"dtype": model.dtype, "trust_remote_code": model.trust_remote_code, "seed": 0, "enforce_eager": eager,
                "max_num_seqs": settings.max_num_seqs, "max_model_len": settings.max_model_len or -1,
                "tensor_parallel_size": settings.tensor_parallel,
                "distributed_executor_backend": "uni" if settings.tensor_parallel == 1 else "mp"}
    cpu = {"kv_cache_memory_bytes": int(settings.cpu_kv_cache_gb * 2 ** 30), "block_size": CPU_BLOCK}
    gpu = {"gpu_memory_utilization": settings.gpu_memory_utilization, **(gpu or {})}
    return {"folder": str(folder), "options": options, "cpu": cpu, "gpu": gpu}


def environment(threads: int, devices: list[str], eager: bool) -> dict[str, str]:
    """Of an engine's process: its own threads and devices; no statistics, no plugins, no network."""
    settings = {
        "PYTHONPATH": os.pathsep.join(each or os.getcwd() for each in sys.path), "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the cores are also those of the stage that waits
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # its logits processors have another interface, and do not run on a CPU
        "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_PLUGINS": "",
    }
    if devices:
        settings["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    if eager:
        settings["TORCHDYNAMO_DISABLE"] = "1"  # vLLM compiles the ranks of log-probs even so: 25 s on two cores
    return {name: value for name, value in os.environ.items() if name not in NOT_INHERITED} | settings
