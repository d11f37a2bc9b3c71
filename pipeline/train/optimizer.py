"""AdamW over a model's float32 weights, its state by parameter name, and the learning rate of a step.

Promises: training that is saved and loaded between two steps goes on bit for bit as if it had not been.
The state is a safetensors file: `<parameter>.exp_avg`, `<parameter>.exp_avg_sq`, `<parameter>.step`, and
`run_steps`, the optimizer steps of the whole run, skipped ones included. No metadata: its order is not defined.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter

from storage.errors import IntegrityError, UserError

STATE_FILE = "optimizer.safetensors"
RUN_STEPS = "run_steps"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
MOMENTS_8BIT = ("state1", "state2", "step", "qmap1", "qmap2", "absmax1", "absmax2")
"""The last four are missing of parameters below 4096 numbers, whose moments stay float32."""


class Named(Protocol):
    """Parameters by name: a module, or one that is cut over ranks."""

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]: ...

    def parameters(self) -> Iterator[Parameter]: ...


def adamw(model: Named, *, learning_rate: float, betas: tuple[float, float], eps: float,
          weight_decay: float) -> torch.optim.AdamW:
    """AdamW with decoupled decay on matrices only: norms and biases have one dimension and no scale to decay to."""
    return torch.optim.AdamW(_groups(model, weight_decay), lr=learning_rate, betas=betas, eps=eps, fused=True)


def adamw8bit(model: Named, *, learning_rate: float, betas: tuple[float, float], eps: float,
              weight_decay: float) -> torch.optim.Optimizer:
    """The same with both moments in 8 bits, in blocks of 256 (Dettmers et al., arXiv 2110.02861), by bitsandbytes."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError("train.optimizer = 'adamw8bit' needs bitsandbytes, which is not installed: pip install "
                        "bitsandbytes, or set train.optimizer = 'adamw'") from error
    return AdamW8bit(_groups(model, weight_decay), lr=learning_rate, betas=betas, eps=eps)


def _groups(model: Named, weight_decay: float) -> list[dict]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
              {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def warmed_up(learning_rate: float, step: int, warmup_steps: int) -> float:
    """Learning rate of `step`, counted from 1 over the whole run: linear up to `warmup_steps`, then constant."""
    return learning_rate * min(1.0, step / max(1, warmup_steps))


def save_state(optimizer: torch.optim.Optimizer, model: Named, run_steps: int, folder: Path) -> None:
    """Write the optimizer's state into `folder`."""
    write_state(state_tensors(optimizer, model, run_steps), folder)


def write_state(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write what `state_tensors` gave."""
    save_file(tensors, folder / STATE_FILE)


def state_tensors(optimizer: torch.optim.Optimizer, model: Named, run_steps: int,
                  keep: bool = True) -> dict[str, Tensor]:
    """What the state file holds; of a model cut over ranks every rank gathers it, {} where it is not kept."""
    tensors = {RUN_STEPS: torch.tensor([run_steps], dtype=torch.int64)}
    for name, parameter in model.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            full = whole(torch.as_tensor(value)).contiguous()
            full = full.clone() if moment.startswith("qmap") else full  # one table of all parameters
            if keep:
                tensors[f"{name}.{moment}"] = full
    return tensors if keep else {}


def load_state(optimizer: torch.optim.Optimizer, model: Named, folder: Path) -> int:
    """Fill `optimizer` from `folder` and return the run's steps so far; 0 and a fresh state if there is no file."""
    moments = MOMENTS if isinstance(optimizer, torch.optim.AdamW) else MOMENTS_8BIT
    run_steps, states = read_state(model, folder, moments)
    for name, parameter in model.named_parameters():
        if name in states:
            state = {moment: value.to(parameter.device) for moment, value in states[name].items()}
            optimizer.state[parameter] = {**state, "step": int(state["step"])} if moments is MOMENTS_8BIT else state
    return run_steps


def read_state(model: Named, folder: Path, moments: tuple[str, ...] = MOMENTS) -> tuple[int, dict]:
    """(the run's steps so far, {parameter: {moment: tensor}}); (0, {}) if there is no file, or one of another
    optimizer, whose moments are not taken over. Raises IntegrityError if they do not fit `model`."""
    path = folder / STATE_FILE
    if not path.exists():
        return 0, {}
    tensors, states = load_file(path), {}
    run_steps = int(tensors.pop(RUN_STEPS))
    other = MOMENTS[0] if moments is MOMENTS_8BIT else MOMENTS_8BIT[0]
    if any(name.endswith(f".{other}") for name in tensors):
        return 0, {}
    for name, parameter in model.named_parameters():
        state = {moment: tensors.pop(f"{name}.{moment}") for moment in moments if f"{name}.{moment}" in tensors}
        if not state:
            continue
        if not set(moments[:3]) <= state.keys() or state[moments[0]].shape != parameter.shape:
            raise IntegrityError(f"{path} does not fit the model at {name}: it belongs to another checkpoint; "
                                 "run `opd verify`")
        states[name] = state
    if tensors:
        raise IntegrityError(f"{path} has state for {min(tensors)}, which the model does not have; run `opd verify`")
    return run_steps, states


def whole(tensor: Tensor) -> Tensor:
    """A tensor on the CPU, gathered if it is cut over ranks: every rank must ask for the same ones in one order."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().cpu()
