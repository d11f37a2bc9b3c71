"""The continuation stage: student and teacher go on from the student's rollouts, cut at chosen depths.

    opd continuation --run R --round 3 [--shard 7]

How often the teacher still arrives from a prefix that the student wrote, against how often the student itself does, is
the depth curve of Rethinking OPD (arXiv 2604.13016) and the prefix distortion of The Many Faces of OPD (2605.11182):
where the two meet, the teacher knows no way on from there that the student does not find. Deeper cuts are of longer
rollouts only, so two depths are compared over what both have; the two models of one depth always are.

Both models are fed the stored token ids. What they write is drawn as rollouts are, so that a shard has the same bytes
in any order of its round's shards. Samples of one prefix share the pass over it; prefixes of one rollout do not.
"""

from pipeline.context import RoundContext
from pipeline.continuation.prefixes import cut, read_rollouts
from pipeline.continuation.rows import GoesOn, continue_and_grade
from pipeline.models import load_tokenizer, resolve
from pipeline.provenance import planned_checkpoint, writing_teacher
from pipeline.rollout.engine import stop_ids
from storage import documents, layout
from storage.checkpoints import local_checkpoint, model_files
from storage.records import CheckpointFiles
from storage.rounds import Receipt


def run(context: RoundContext, shard: int) -> Receipt:
    """Continue and grade the rollouts of one shard's prompts with one model."""
    planned, start = context.round.plan().continuation[shard], planned_checkpoint(context)
    rollouts, files = read_rollouts(context, planned.prompt_ids, start)
    with_reference = [rollout for rollout in rollouts if rollout["ground_truth"] is not None]
    depths = context.config.continuation.depths
    places = cut(with_reference, depths)
    student = _student(context, start)
    model = student if planned.role == "student" else _teacher(context)
    rows = continue_and_grade(context, model, places, student.tokenizer)
    plan_key = layout.plan(context.run, context.number)
    inputs = {**files, **model_files(start), plan_key: documents.sha256(context.store.get(plan_key))}
    return context.round.finish("continuation", shard, "continuation", rows, inputs=inputs, facts={
        "continuations": rows.num_rows, "right": rows["correct"].to_pylist().count(True),
        "truncated": rows["finish_reason"].to_pylist().count("length"), "rollouts": len(rollouts),
        "without_reference": len(rollouts) - len(with_reference),
        "too_short": len(with_reference) * len(depths) - len(places)})


def _student(context: RoundContext, start: CheckpointFiles) -> GoesOn:
    """The checkpoint that wrote the rollouts, over the vocabulary that they were drawn from."""
    folder, vocabulary = local_checkpoint(context.store, start), context.document["vocabulary"]["shared"]
    tokenizer = load_tokenizer(folder, trust_remote_code=context.config.student.trust_remote_code)
    return GoesOn("student", folder, context.config.student, start.fingerprint, tokenizer, vocabulary,
                  stop_ids(context.document["student"], vocabulary))


def _teacher(context: RoundContext) -> GoesOn:
    """The teacher, over its own vocabulary, of which the student's ids are a part: it ends where it would end."""
    (model, tokenizer), facts = writing_teacher(context), context.document["teacher"]
    vocabulary = len(tokenizer)
    return GoesOn("teacher", resolve(model), model, facts["fingerprint"], tokenizer, vocabulary,
                  stop_ids(facts, vocabulary))
