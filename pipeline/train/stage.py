"""The train stage: one pass over a round's cached tokens, from the student that wrote them to the next one.

    opd train --run R --round 3

Reads the rollout, score and mask shards that have receipts, checkpoint=3, and for objectives over the whole vocabulary
the teacher's hidden states, or the teacher itself. Writes the steps table and checkpoint=4. It has one shard. Same
inputs, same config, same number of threads: same bytes.

With train.ranks > 1 that many processes share every step (launch.py, ranks.py), each with its part of the weights.
"""

import tempfile
from pathlib import Path

from pipeline.context import RoundContext
from pipeline.train.launch import TrainedByRanks, train_on_ranks
from pipeline.train.parallel import OneProcess
from pipeline.train.session import INPUT_STAGES, Trained, train_round
from storage.rounds import Receipt, put_checkpoint


def run(context: RoundContext, shard: int = 0) -> Receipt:
    """Train on the round, put the next checkpoint, and finish the stage's only shard."""
    assert shard == 0, "the train stage has one shard"
    receipt = finish(context, train(context))
    assert receipt is not None
    return receipt


def train(context: RoundContext) -> Trained | TrainedByRanks:
    """Train on the round, in this process or by ranks of their own; writes nothing into the store."""
    return train_round(context, OneProcess()) if context.config.train.ranks == 1 else train_on_ranks(context)


def finish(context: RoundContext, trained: Trained | TrainedByRanks) -> Receipt | None:
    """Put the checkpoint, then the shard with its receipt. Every rank calls it; None on all but the first."""
    with tempfile.TemporaryDirectory(prefix="opd-checkpoint-") as folder:
        trained.write_checkpoint(Path(folder))
        if not trained.first:
            return None
        checkpoint = put_checkpoint(context.store, context.run, context.number + 1, Path(folder))
    return context.round.finish("train", 0, "steps", trained.steps, inputs=trained.inputs(), facts=trained.facts,
                                checkpoint=checkpoint)


def check_inputs(context: RoundContext) -> None:
    """Raise UserError if a stage that training reads has not finished."""
    for stage in INPUT_STAGES:
        context.round.input_files(stage)
