"""One vLLM for all tests of this session that need one: it takes 10 to 30 s to start and 0.1 s to reload."""

import shutil
from pathlib import Path

import pytest

from tests.tiny import byte_tokenizer, save_model

ENGINE = {"type": "vllm", "cpu_kv_cache_gb": 0.125, "max_num_seqs": 32, "probe_rollouts": 4}
"""Equal for all tests, so that they share the engine."""
ENGINE_SETTINGS = [f"rollout.engine.{key}={value}" for key, value in ENGINE.items()]
PADDED, HIDDEN = 288, 64
"""Rows of the head, of which the tokenizer has 259; vLLM's kernels on a CPU need heads of at least 32."""


def save_student(folder: Path, seed: int, sharpness: float = 2.0) -> Path:
    """A random student whose padded rows would win every draw: tied, so they are 20 times as large."""
    from safetensors.torch import load_file, save_file

    tokenizer = byte_tokenizer()
    save_model(folder, tokenizer, seed=seed, vocab=PADDED, hidden=HIDDEN, sharpness=sharpness)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][len(tokenizer):] *= 20
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def students(tmp_path_factory) -> list[Path]:
    """Two students of one architecture, and a third one whose weights are NaN."""
    folder = tmp_path_factory.mktemp("students")
    found = [save_student(folder / f"student-{seed}", seed) for seed in (1, 2)]
    return [*found, broken_copy(found[0], folder / "broken")]


def broken_copy(student: Path, folder: Path) -> Path:
    """The same student with one NaN in its weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(student, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def vllm_engine():
    """opened(folder): vLLM with the weights in that folder. Started by the first test, reloaded by the others."""
    from pipeline.config.engines import VllmEngine
    from pipeline.config.model import Model
    from pipeline.rollout import engine

    def opened(folder: Path):
        return engine.open_engine(VllmEngine(**ENGINE), Model(path=str(folder)), folder)

    yield opened
    engine.close()
