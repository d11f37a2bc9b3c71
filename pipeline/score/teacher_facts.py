"""What run.json records of the teacher, however it is run.

    our scorer   its files, as of any model
    vllm         the same, and vLLM's version
    vllm_server  its tokenizer and config.json, the name it is served under, the server's version, and what the server
                 says of fixed tokens; weights need not lie in its folder, and are not looked at
"""

from dataclasses import asdict
from typing import Any

from pipeline.config.model import RunConfig


def teacher_facts(config: RunConfig, tokenizer, student_rows: int | None) -> dict[str, Any]:
    """{"teacher": .., "vocabulary": ..} of run.json; `tokenizer` is the student's. Raises UserError for a teacher that
    does not fit it, for vLLM that is not installed, and for a server that does not answer or serves something else."""
    from pipeline.models import load_tokenizer, model_facts, vocabulary_agreement

    engine = config.score.engine
    weights = f"served:{engine.model}" if engine.type == "vllm_server" else None
    teacher = model_facts(config.teacher, weights)
    agreement = vocabulary_agreement(tokenizer, load_tokenizer(config.teacher), student_rows=student_rows,
                                     teacher_rows=teacher["vocab_size"])
    scored_by = _scored_by(config, teacher, agreement.shared)
    return {"teacher": teacher | ({"scored_by": scored_by} if scored_by else {}), "vocabulary": asdict(agreement)}


def _scored_by(config: RunConfig, teacher: dict[str, Any], shared: int) -> dict[str, Any] | None:
    engine = config.score.engine
    if engine.type == "vllm":
        from pipeline.vllm.checks import checked_version

        return {"engine": "vllm", "version": checked_version("score.engine", "scorer")}
    if engine.type == "vllm_server":
        from pipeline.score.by_vllm.columns import entries_asked, head_rows_of
        from pipeline.score.by_vllm.server import ServedTeacher

        entries = entries_asked(config.score, shared, head_rows_of(teacher, shared))
        return ServedTeacher(engine).facts(shared, entries) | {"shared": shared}
    return None
