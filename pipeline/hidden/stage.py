"""Keep what the teacher's head is applied to, for every token of one shard of rollouts.

    opd hidden --run R --round 3 --shard 7

Runs where score.teacher_hidden_states is set: the teacher reads the rollouts once more, without its head, and leaves
one hidden state per row of `tokens`, and its head once per run. Objectives over the whole vocabulary are then trained
without a teacher. The receipt's facts say how the numbers are coded (coding.py) and what they cost.
"""

from collections.abc import Callable

from pipeline.context import RoundContext
from pipeline.hidden import coding
from pipeline.hidden.head import store_head
from pipeline.hidden.teacher import checked_teacher, hidden_table
from pipeline.models import output_head
from pipeline.provenance import check_tokens, check_writer, planned_checkpoint
from pipeline.score.key import teacher_key
from storage.rounds import CheckpointFiles, Receipt


def run(context: RoundContext, shard: int) -> Receipt:
    """Write the shard's hidden states and finish it."""
    return begin(context, shard)()


def begin(context: RoundContext, shard: int) -> Callable[[], Receipt]:
    """Do what needs the teacher. What is returned does the rest, in another thread if need be: Parquet, hash and store
    of kilobytes per token."""
    rollouts = context.round.read("rollout", shard)
    where = f"round {context.number} of {context.run}, shard {shard}"
    check_tokens(rollouts, where)
    check_writer(rollouts, planned_checkpoint(context).fingerprint, where)
    context.progress("load the teacher", 0, 1)
    teacher, settings = checked_teacher(context), context.config.score
    dtype, width = settings.teacher_hidden_states, output_head(teacher).weight_VD.shape[1]
    table = hidden_table(rollouts, teacher, dtype, settings.batch_tokens, context.progress)
    key = teacher_key(context.document, context.config)
    facts = {"dtype": dtype, "width": width, "bytes_per_token": coding.bytes_per_token(dtype, width),
             "teacher_key": key}

    def finish() -> Receipt:
        return context.round.finish("hidden", shard, "hidden", table, facts=facts, head=_head(context, key),
                                    inputs=context.round.input_files("rollout", shard))

    return finish


def _head(context: RoundContext, key: str) -> CheckpointFiles:
    """The teacher's head in the store: what another shard has put, since large ones take seconds to write and hash."""
    finished = (context.round.receipt("hidden", each) for each in context.round.shard_indices("hidden"))
    for receipt in finished:
        if receipt and receipt.head and receipt.facts["teacher_key"] == key:
            return receipt.head
    return store_head(context.store, context.run, output_head(checked_teacher(context)),
                      context.document["vocabulary"]["shared"], context.document["teacher"]["fingerprint"])
