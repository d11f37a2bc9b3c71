"""One real vLLM server for the session, on the CPU, over a tiny model; and runs that use it.

It holds one model at a time: `holding` gives it the weights that a test needs, as its operator would.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from pipeline import stages
from pipeline.config import load_config
from pipeline.config.engines import VllmServer
from pipeline.config.template import to_toml
from pipeline.context import open_context
from pipeline.prompts.stage import plan_round
from pipeline.start import start_run
from pipeline.vllm.client import VllmClient
from tests.tiny import byte_tokenizer, make_tiny, save_model

KEY, KEY_ENV, NAME, MAX_LOGPROBS = "sesame", "OPD_TEST_SERVER_KEY", "tiny", 24
HIDDEN = 64
"""Two heads of 32: the least that vLLM's attention on a CPU takes."""
START_S = 240


class Server:
    """A running server, its models on disk, and a way to change what it holds."""

    def __init__(self, folder: Path):
        self.models = {name: save_model(folder / name, byte_tokenizer(), seed=seed, hidden=HIDDEN, sharpness=sharpness)
                       for name, seed, sharpness in (("student", 1, 1.0), ("teacher", 2, 3.0))}
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", self.models["student"],
             "--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32",
             "--max-logprobs", str(MAX_LOGPROBS), "--max-model-len", "512", "--enforce-eager", "--api-key", KEY,
             "--logprobs-mode", "processed_logprobs", "--distributed-executor-backend", "uni",
             "--worker-extension-cls", "pipeline.vllm.reload.TakesWeights"],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "VLLM_CPU_KVCACHE_SPACE": "1",
                              "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                              "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "TORCHDYNAMO_DISABLE": "1"},
            stdout=self.log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True)

    def wait(self) -> None:
        deadline = time.monotonic() + START_S
        while b"Application startup complete" not in self.log.read_bytes():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"vLLM's server did not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.2)

    def hold(self, name: str) -> Path:
        """Give the server a model's weights; returns its folder."""
        client = VllmClient(VllmServer(url=self.url, model=NAME, api_key_env=KEY_ENV), "server")
        client.post("/collective_rpc", {"method": "take_weights", "args": [str(self.models[name])]})
        client.post("/reset_prefix_cache")
        return self.models[name]

    def stop(self) -> None:
        """End it and its children."""
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory):
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    server = Server(tmp_path_factory.mktemp("vllm-server"))
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture(autouse=True)
def server_key(monkeypatch):
    """The key is in the environment, as a user has it."""
    monkeypatch.setenv(KEY_ENV, KEY)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def empty_rows(folder: Path, first: int) -> None:
    """Set the rows of a tied head from `first` on to zero."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][first:] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def begin(folder: Path, server: Server | None, *settings: str, weightless: bool = False, padded: int = 0):
    """The context of round 0 of a new tiny run, planned, with its prompts. `weightless`: a teacher without weights;
    `padded`: rows of its head that are no token, and zero: 1e-5 of the probability."""
    file = make_tiny(folder)
    document = tomllib.loads(file.read_text())
    file.write_text(to_toml({key: document[key] for key in document if key not in ("evaluation", "mask")}))
    for name in ("student", "teacher"):
        shutil.rmtree(folder / name)
        if server:
            shutil.copytree(server.models[name], folder / name)
        else:
            teacher = name == "teacher"
            save_model(folder / name, byte_tokenizer(), seed=1 + teacher, hidden=HIDDEN,
                       sharpness=6.0 if teacher else 2.0, vocab=259 + padded * teacher)
            empty_rows(folder / name, 259)
    if weightless:
        (folder / "teacher" / "model.safetensors").unlink()
    config = load_config(file, ["rollout.max_new_tokens=12", *settings])
    start_run(config)
    context = open_context(config.store, config.run, 0)
    plan_round(context)
    for shard in context.round.shard_indices("prompts"):
        stages.run_shard(context, "prompts", shard)
    return context
