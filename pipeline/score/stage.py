"""Score one shard of rollouts: teacher and behaviour student, every token once.

    opd score --run R --round 3 --shard 7
"""

from functools import lru_cache
from pathlib import Path

from pipeline.config.model import Model
from pipeline.context import RoundContext
from pipeline.models import device, load_model, pinned
from pipeline.provenance import check_teacher, check_tokens, check_writer, planned_checkpoint
from pipeline.score.gates import check_scores
from pipeline.score.key import scoring_key, teacher_key
from pipeline.score.scorer import score_rollouts
from storage.checkpoints import model_files
from storage.rounds import CheckpointFiles, Receipt, local_checkpoint


def run(context: RoundContext, shard: int) -> Receipt:
    """Score the shard and finish it. Nothing is written unless every gate passes."""
    rollouts = context.round.read("rollout", shard)
    checkpoint, where = planned_checkpoint(context), f"round {context.number} of {context.run}, shard {shard}"
    check_tokens(rollouts, where)
    check_writer(rollouts, checkpoint.fingerprint, where)
    shared = context.document["vocabulary"]["shared"]
    context.progress("load models", 0, 1)
    student, teacher = _student(context, checkpoint), _teacher(context)
    scores = score_rollouts(rollouts, student, teacher, shared, context.config.score, context.progress)
    check_scores(scores, rollouts, shared)
    full_key, short_key = scoring_key(context.document, context.config, checkpoint.fingerprint)
    facts = {"rollouts": len(rollouts), "scoring_key": full_key,
             "teacher_key": teacher_key(context.document, context.config),
             "environment_tokens": len(rollouts["response_tokens"].combine_chunks().flatten()) - len(scores)}
    return context.round.finish("score", shard, "tokens", scores, scores=short_key, facts=facts,
                                inputs=context.round.input_files("rollout", shard) | model_files(checkpoint))


def _student(context: RoundContext, checkpoint: CheckpointFiles):
    folder = local_checkpoint(context.store, checkpoint)
    return _load_student(folder, context.config.student, checkpoint.fingerprint)


def _teacher(context: RoundContext):
    facts = context.document["teacher"]
    model = pinned(context.config.teacher, facts)
    check_teacher(model, facts)
    return _load_teacher(model)


@lru_cache(maxsize=1)
def _load_student(folder: Path, settings: Model, fingerprint: str):
    """Kept for the next shard of this process; `fingerprint` makes another checkpoint another entry."""
    return load_model(folder, dtype=settings.dtype, attention=settings.attention, device=device(),
                      trust_remote_code=settings.trust_remote_code)


@lru_cache(maxsize=1)
def _load_teacher(model: Model):
    return load_model(model, device=device())
