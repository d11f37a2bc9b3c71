"""The evaluate stage: what the student that the round made answers to problems it never trains on.

    opd evaluate --run R --round 3 [--shard 7]

Round n grades checkpoint n + 1. Round 0 also grades the student that began the run and the teacher, the two ends of
the gap that is to be closed: once, since neither changes. Where another run of the store has graded the same model on
the same problems in the same way, its rows are copied and not computed again (timings/ says from where).
"""

from pipeline.context import RoundContext
from pipeline.evaluate.grade import Graded, grade
from pipeline.evaluate.key import evaluation_key
from pipeline.evaluate.reuse import find_rows
from pipeline.evaluate.stored import held_out
from pipeline.models import load_tokenizer, resolve
from pipeline.provenance import writing_teacher
from storage import documents, layout
from storage.checkpoints import model_files
from storage.records import CheckpointFiles
from storage.rounds import Receipt, local_checkpoint, starting_checkpoint


def run(context: RoundContext, shard: int) -> Receipt:
    """Grade one shard."""
    planned = context.round.plan().evaluation[shard]
    (benchmark,) = (each for each in context.config.evaluation.benchmark if each.name == planned.benchmark)
    graded, inputs = _graded(context, planned.role)
    key = evaluation_key(context, planned, benchmark, graded)
    server = context.config.rollout.engine.type == "vllm_server"  # what runs there is no part of the key
    known = planned.role != "student" and not server
    rows, origin = find_rows(context.store, key) if known else (None, None)
    if rows is None:
        problems = held_out(context, benchmark)
        rows = grade(graded, benchmark, [problems[each] for each in planned.prompt_ids], context.config,
                     role=planned.role, progress=context.progress)
    else:
        context.notes["reused_from"] = origin
    plan_key = layout.plan(context.run, context.number)
    inputs[plan_key] = documents.sha256(context.store.get(plan_key))
    return context.round.finish("evaluate", shard, "evaluation", rows, inputs=inputs, facts={
        "evaluation_key": key, "answers": rows.num_rows, "right": rows["correct"].to_pylist().count(True),
        "truncated": rows["finish_reason"].to_pylist().count("length")})


def _graded(context: RoundContext, role: str) -> tuple[Graded, dict[str, str]]:
    """The model of a role, and the store's files that it is read from."""
    if role == "teacher":
        model, tokenizer = writing_teacher(context)
        return Graded(resolve(model), model, context.document["teacher"]["fingerprint"], tokenizer), {}
    checkpoint, settings = _checkpoint(context, role), context.config.student
    folder = local_checkpoint(context.store, checkpoint)
    tokenizer = load_tokenizer(folder, trust_remote_code=settings.trust_remote_code)
    return Graded(folder, settings, checkpoint.fingerprint, tokenizer), model_files(checkpoint)


def _checkpoint(context: RoundContext, role: str) -> CheckpointFiles:
    if role == "start":
        return starting_checkpoint(context.store, context.run, 0)
    trained = context.round.receipt("train", 0).checkpoint
    assert trained is not None
    return trained
