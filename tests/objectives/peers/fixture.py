"""What every generate_*.py shares: the inputs, and how a peer's outputs are written down.

A fixture is one JSON file: which function of which release or commit was run by which command, the inputs as numbers,
and for every case the peer's loss per position and its gradient with respect to the student's logits. Needs torch
alone: the scripts run in an environment that holds the peer, the tests in one that does not.

Shapes: N positions, V vocabulary, K the teacher's top-K, k the student's.
"""

import json
import subprocess
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent
POSITIONS, VOCAB, TEACHER_K, STUDENT_K = 4, 16, 5, 4


def inputs(seed: int, drift: float = 0.0) -> dict[str, Tensor]:
    """Raw logits in float64, multiples of 1/64: the same numbers in float32. `drift`: of the student from p_0."""
    generator = torch.Generator().manual_seed(seed)

    def noise():
        return torch.randn(POSITIONS, VOCAB, generator=generator, dtype=torch.float64)

    teacher_NV = 2 * noise()
    behaviour_NV = 0.6 * teacher_NV + 1.6 * noise()
    drawn = {"teacher": teacher_NV, "behaviour": behaviour_NV, "student": behaviour_NV + drift * noise()}
    return {name: (64 * logits_NV).round() / 64 for name, logits_NV in drawn.items()}


def top_k(logits_NV: Tensor, k: int) -> Tensor:
    return logits_NV.topk(k, dim=-1).indices


def case(name: str, loss_N: Tensor, student_NV: Tensor, **settings) -> dict:
    """One run of the peer: `loss_N` per position; the gradient is of their sum."""
    gradient_NV = torch.zeros_like(student_NV)
    if loss_N.requires_grad:
        gradient_NV = torch.autograd.grad(loss_N.sum(), student_NV)[0]
    return {"name": name, **settings, "loss": loss_N.detach().tolist(), "gradient": gradient_NV.tolist()}


def write(file: str, *, peer: str, version: str, function: str, command: str, dtype: str, tensors: dict[str, Tensor],
          cases: list[dict]) -> None:
    document = {"peer": peer, "version": version, "function": function, "command": command, "dtype": dtype,
                "inputs": {name: tensor.tolist() for name, tensor in tensors.items()}}
    lines = ",\n".join(json.dumps(entry) for entry in cases)
    fields = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in document.items())
    (FOLDER / file).write_text(f'{{{fields},\n"cases": [\n{lines}\n]}}\n')


def read(file: str) -> dict:
    return json.loads((FOLDER / file).read_text())


def commit(checkout: Path) -> str:
    """Of a checkout; an export without .git names it in a file COMMIT."""
    if (checkout / "COMMIT").exists():
        return (checkout / "COMMIT").read_text().strip()
    return subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], check=True, capture_output=True,
                          text=True).stdout.strip()
