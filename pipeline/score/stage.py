"""Score one shard of rollouts: teacher and behaviour student, every token once.

    opd score --run R --round 3 --shard 7

With score.reuse the teacher's columns come, where they can, from rounds that scored the same tokens with the same
teacher; it is loaded at the first rollout that has none. The receipt then counts the rollouts whose payload was
`reused`, those the teacher `scored`, and how many of the first were `cut` to a smaller K.

With score.engine.type = "vllm" or "vllm_server" vLLM reads the rollouts for the teacher (by_vllm/), our scorer
for the student. What vLLM does not tell is null (pipeline/config/teachers.py); the receipt holds what reading some
rollouts again has shown.

A model that cannot be packed (packed.py) is scored all the same, padded and slower: the receipt then says why, as
`padded`, by side.
"""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from torch import nn

from pipeline.config.model import Model
from pipeline.context import RoundContext
from pipeline.kept import kept
from pipeline.models import device, load_model
from pipeline.provenance import check_tokens, check_writer, planned_checkpoint, teacher_model
from pipeline.score.by_vllm.scores import score_by_vllm
from pipeline.score.gates import check_scores
from pipeline.score.key import scoring_key, teacher_key
from pipeline.score.packed import why_padded
from pipeline.score.reuse import files_of, find_payloads
from pipeline.score.scorer import score_reusing, score_rollouts
from storage.checkpoints import model_files
from storage.rounds import CheckpointFiles, Receipt, local_checkpoint


def run(context: RoundContext, shard: int) -> Receipt:
    """Score the shard and finish it. Nothing is written unless every gate passes."""
    return begin(context, shard)()


def begin(context: RoundContext, shard: int) -> Callable[[], Receipt]:
    """Do what needs the models. What is returned does the rest: gates, Parquet, the store. It may run in another thread
    while the next shard is begun: most of its time is spent in numpy, pyarrow and the disk, which leave the interpreter
    to others."""
    rollouts = context.round.read("rollout", shard)
    checkpoint, where = planned_checkpoint(context), f"round {context.number} of {context.run}, shard {shard}"
    check_tokens(rollouts, where)
    check_writer(rollouts, checkpoint.fingerprint, where)
    context.progress("load models", 0, 1)
    models, key = {"student": _student(context, checkpoint)}, teacher_key(context.document, context.config)
    inputs = context.round.input_files("rollout", shard) | model_files(checkpoint)
    scores, counts, sources = _score(context, rollouts, models, key)
    full_key, short_key = scoring_key(context.document, context.config, checkpoint.fingerprint)
    facts = {"rollouts": len(rollouts), "scoring_key": full_key, "teacher_key": key,
             "environment_tokens": len(rollouts["response_tokens"].combine_chunks().flatten()) - len(scores)}
    facts |= counts | _padded(models)

    def finish() -> Receipt:
        check_scores(scores, rollouts, context.document["vocabulary"]["shared"])
        return context.round.finish("score", shard, "tokens", scores, scores=short_key, facts=facts,
                                    inputs=inputs | sources)

    return finish


def _score(context: RoundContext, rollouts: pa.Table, models: dict[str, nn.Module],
           key: str) -> tuple[pa.Table, dict, dict[str, str]]:
    """Scores, what the receipt says of who was asked, and the files of earlier rounds that were read. A teacher that
    is loaded is added to `models`."""
    if context.config.score.engine.type != "scorer":
        return score_by_vllm(context, rollouts, models["student"], key)
    if context.config.score.reuse:
        return _score_reusing(context, rollouts, models, key)
    scores = score_rollouts(rollouts, models["student"], _teacher(context, models),
                            context.document["vocabulary"]["shared"], context.config.score, context.progress)
    return scores, {}, {}


def _padded(models: dict[str, nn.Module]) -> dict[str, dict[str, str]]:
    """Why which model was read with padding; nothing for models that are packed."""
    reasons = {side: reason for side, model in models.items() if (reason := why_padded(model))}
    return {"padded": reasons} if reasons else {}


def _score_reusing(context: RoundContext, rollouts: pa.Table, models: dict[str, nn.Module],
                   key: str) -> tuple[pa.Table, dict[str, int], dict[str, str]]:
    """Scores, how many rollouts the teacher did not have to read and how many it did, and the files it did not."""
    settings, document = context.config.score, context.document
    payloads = find_payloads(context.store, key, document["teacher"]["fingerprint"], settings, rollouts)
    scores, used = score_reusing(rollouts, models["student"], lambda: _teacher(context, models),
                                 document["vocabulary"]["shared"], settings, payloads, context.progress)
    counts = {"reused": len(used), "scored": pc.count_distinct(scores["rollout_id"]).as_py() - len(used),
              "cut": sum(payload.width > settings.teacher_top_k for payload in used)}
    context.notes.update(counts)
    return scores, counts, files_of(used)


def _student(context: RoundContext, checkpoint: CheckpointFiles):
    folder = local_checkpoint(context.store, checkpoint)
    return _load_student(folder, context.config.student, checkpoint.fingerprint)


def _teacher(context: RoundContext, models: dict[str, nn.Module]) -> nn.Module:
    models["teacher"] = _load_teacher(teacher_model(context))
    return models["teacher"]


@kept
def _load_student(folder: Path, settings: Model, fingerprint: str):
    """Kept for the next shard of this process; `fingerprint` makes another checkpoint another entry."""
    return load_model(folder, dtype=settings.dtype, attention=settings.attention, device=device(),
                      trust_remote_code=settings.trust_remote_code)


@kept
def _load_teacher(model: Model):
    return load_model(model, device=device())
