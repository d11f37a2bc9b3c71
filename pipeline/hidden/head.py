"""The teacher's output head as two files, put once per run beside its hidden states.

    head.safetensors   weight, the rows of the ids that both models share, in the teacher's dtype; bias, if it has one
    head.json          scale, softcap, vocabulary, width, dtype, and the teacher's fingerprint
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipeline.models import Head
from storage.checkpoints import put_head
from storage.objects import ObjectStore
from storage.records import CheckpointFiles

WEIGHTS, FACTS = "head.safetensors", "head.json"


def store_head(store: ObjectStore, run: str, head: Head, vocabulary: int, fingerprint: str) -> CheckpointFiles:
    """Put the first `vocabulary` rows of `head`; the same head is put once."""
    with tempfile.TemporaryDirectory(prefix="opd-head-") as folder:
        write_head(Path(folder), head, vocabulary, fingerprint)
        return put_head(store, run, Path(folder))


def write_head(folder: Path, head: Head, vocabulary: int, fingerprint: str) -> None:
    """Write both files; equal heads give equal bytes."""
    tensors = {"weight": head.weight_VD, "bias": head.bias}
    save_file({name: tensor.detach()[:vocabulary].cpu().contiguous() for name, tensor in tensors.items()
               if tensor is not None}, folder / WEIGHTS)
    facts = {"scale": head.scale, "softcap": head.softcap, "vocabulary": vocabulary, "width": head.weight_VD.shape[1],
             "dtype": str(head.weight_VD.dtype).removeprefix("torch."), "teacher": fingerprint}
    (folder / FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")


def read_head(folder: Path, device: torch.device | str = "cpu") -> Head:
    """The head in a folder whose files' hashes were checked."""
    tensors, facts = load_file(folder / WEIGHTS, device=str(device)), json.loads((folder / FACTS).read_text())
    return Head(tensors["weight"], tensors.get("bias"), facts["scale"], facts["softcap"])
