"""AdamW over a model's float32 weights, its state by parameter name, and the learning rate of a step.

Promises: training that is saved and loaded between two steps goes on bit for bit as if it had not been.
The state is a safetensors file: `<parameter>.exp_avg`, `<parameter>.exp_avg_sq`, `<parameter>.step`, and
`run_steps`, the optimizer steps of the whole run, skipped ones included. No metadata: its order is not defined.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from storage.errors import IntegrityError

STATE_FILE = "optimizer.safetensors"
RUN_STEPS = "run_steps"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def adamw(model: torch.nn.Module, *, learning_rate: float, betas: tuple[float, float], eps: float,
          weight_decay: float) -> torch.optim.AdamW:
    """AdamW with decoupled decay on matrices only: norms and biases have one dimension and no scale to decay to."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
              {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=betas, eps=eps,
                             fused=True)


def warmed_up(learning_rate: float, step: int, warmup_steps: int) -> float:
    """Learning rate of `step`, counted from 1 over the whole run: linear up to `warmup_steps`, then constant."""
    return learning_rate * min(1.0, step / max(1, warmup_steps))


def save_state(optimizer: torch.optim.Optimizer, model: torch.nn.Module, run_steps: int, folder: Path) -> None:
    """Write the optimizer's state into `folder`."""
    tensors = {RUN_STEPS: torch.tensor([run_steps], dtype=torch.int64)}
    for name, parameter in model.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{moment}"] = value.detach().cpu().contiguous()
    save_file(tensors, folder / STATE_FILE)


def load_state(optimizer: torch.optim.Optimizer, model: torch.nn.Module, folder: Path) -> int:
    """Fill `optimizer` from `folder` and return the run's steps so far; 0 and a fresh state if there is no file."""
    path = folder / STATE_FILE
    if not path.exists():
        return 0
    tensors = load_file(path)
    run_steps = int(tensors.pop(RUN_STEPS))
    for name, parameter in model.named_parameters():
        state = {moment: tensors.pop(f"{name}.{moment}") for moment in MOMENTS if f"{name}.{moment}" in tensors}
        if not state:
            continue
        if state.keys() != set(MOMENTS) or state["exp_avg"].shape != parameter.shape:
            raise IntegrityError(f"{path} does not fit the model at {name}: it belongs to another checkpoint; "
                                 "run `opd verify`")
        optimizer.state[parameter] = {moment: value.to(parameter.device) for moment, value in state.items()}
    if tensors:
        raise IntegrityError(f"{path} has state for {min(tensors)}, which the model does not have; run `opd verify`")
    return run_steps
