"""Runs Liger's JSD kernel in Triton's interpreter, and its chunked loss on a head that is the identity: liger.json.

    TRITON_INTERPRET=1 python -m tests.objectives.peers.generate_liger      (needs: pip install liger-kernel triton)
"""

from importlib.metadata import version

import torch
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
from liger_kernel.transformers import LigerJSD

from tests.objectives.peers.fixture import POSITIONS, VOCAB, case, inputs, write

BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)


def kernel(student_NV: torch.Tensor, teacher_NV: torch.Tensor, beta: float) -> torch.Tensor:
    """A call per position: the kernel returns the mean over positions."""
    jsd = LigerJSD(beta=beta)
    return torch.stack([jsd(student_V[None].log_softmax(-1), teacher_V[None].log_softmax(-1))
                        for student_V, teacher_V in zip(student_NV, teacher_NV)])


def chunked(student_NV: torch.Tensor, teacher_NV: torch.Tensor, beta: float) -> torch.Tensor:
    identity_VV = torch.eye(VOCAB)
    jsd = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False)
    label = torch.zeros(1, dtype=torch.long)
    return torch.stack([jsd(student_V[None], identity_VV, teacher_V[None], identity_VV, label)
                        for student_V, teacher_V in zip(student_NV, teacher_NV)]).reshape(POSITIONS)


def main() -> None:
    tensors = inputs(seed=2, drift=0.5)
    student_NV, teacher_NV = tensors["student"].float().requires_grad_(), tensors["teacher"].float()
    cases = [case(name, run(student_NV, teacher_NV, beta), student_NV, beta=beta)
             for beta in BETAS for name, run in (("kernel", kernel), ("chunked", chunked))]
    write("liger.json", peer="liger-kernel", version=version("liger-kernel"), dtype="float32", tensors=tensors,
          cases=cases, function="transformers.LigerJSD; chunked_loss.LigerFusedLinearJSDLoss",
          command="TRITON_INTERPRET=1 python -m tests.objectives.peers.generate_liger")


if __name__ == "__main__":
    main()
