"""Repeat a committed round as it was, from its starting checkpoint and its shards, and compare what comes out.

    opd replay RUN --round 3 --check

Masks and training are computed again and nothing is written. Rollouts, scores and hidden states are what is replayed,
and evaluation comes after it: these are not compared. On a CPU every byte must agree: each mask shard, the steps table,
every file of the checkpoint, and the closing figures. On a GPU sums are made in another order each time: there the
weights may differ by GPU_TOLERANCE of how far the round moved them, and the tables are not compared.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.context import RoundContext, open_context
from pipeline.models import device
from storage import documents
from storage.checkpoints import folder_hashes
from storage.codec import encode
from storage.errors import UserError
from storage.rounds import Receipt, local_checkpoint, starting_checkpoint
from storage.weights import weight_files

GPU_TOLERANCE = 0.02
"""Of the l2 norm of the round's own change."""


@dataclass(frozen=True)
class Compared:
    """One thing that was computed again."""

    what: str
    same: bool
    detail: str = ""


def check_round(context: RoundContext) -> dict:
    """Returns {same, device, compared: [{what, same, detail}]}. Raises UserError if the round has not been trained."""
    if context.round.run != context.run:  # a branch's first rounds were made under its parent's config
        context = open_context(context.config.store, context.round.run, context.number, context.progress)
    trained = context.round.receipt("train", 0)
    if trained is None:
        raise UserError(f"round {context.number} of {context.run} has not been trained: there is nothing to check; "
                        f"go on with `opd continue {context.run}`")
    compared = list(_masks(context)) + list(_training(context, trained))
    return {"same": all(each.same for each in compared), "device": device().type,
            "compared": [vars(each) for each in compared]}


def _masks(context: RoundContext) -> Iterator[Compared]:
    from pipeline.mask.stage import evaluated, shard_table

    masks = evaluated(context)
    for receipt in context.round.receipts("mask"):
        again = documents.sha256(encode(shard_table(context, receipt.shard, masks)))
        yield Compared(f"mask shard {receipt.shard}", again == receipt.file.sha256, again[:12])


def _training(context: RoundContext, before: Receipt) -> Iterator[Compared]:
    from pipeline.train.stage import train

    again = train(context)
    with tempfile.TemporaryDirectory(prefix="opd-check-") as scratch:
        again.write_checkpoint(Path(scratch))
        if device().type != "cpu":
            yield _weights_are_near(context, before, Path(scratch))
            return
        steps = documents.sha256(encode(again.steps))
        yield Compared("steps", steps == before.file.sha256, f"{again.steps.num_rows} optimizer steps, {steps[:12]}")
        yield Compared("closing figures", again.facts == before.facts)
        hashes = folder_hashes(Path(scratch))
    assert before.checkpoint is not None
    for file in before.checkpoint.files:
        name = file.key.removeprefix(before.checkpoint.prefix)
        yield Compared(f"checkpoint {name}", hashes.pop(name, None) == file.sha256, file.sha256[:12])
    for name in hashes:
        yield Compared(f"checkpoint {name}", False, "was not there before")


def _weights_are_near(context: RoundContext, before: Receipt, again: Path) -> Compared:
    assert before.checkpoint is not None
    start = local_checkpoint(context.store, starting_checkpoint(context.store, context.run, context.number))
    moved, apart = _distances(start, local_checkpoint(context.store, before.checkpoint), again)
    share = apart / moved if moved else apart
    return Compared("weights", share <= GPU_TOLERANCE, f"{share:.2e} of the round's change of {moved:.3e} (l2)")


def _distances(start: Path, before: Path, again: Path) -> tuple[float, float]:
    """l2 norms of before - start and again - before over all weights, however each is cut into files."""
    one, two, three = (_weights(folder) for folder in (start, before, again))
    moved = sum((value - one[name]).double().square().sum().item() for name, value in two.items())
    apart = sum((three[name] - value).double().square().sum().item() for name, value in two.items())
    return moved ** 0.5, apart ** 0.5


def _weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    return {name: value for file in weight_files(folder) for name, value in load_file(file).items()}
