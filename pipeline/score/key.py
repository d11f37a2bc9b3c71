"""The scoring key: scores with one key may be mixed and compared, scores with another lie in another folder.

    teacher_key = sha256 of everything the teacher-only columns depend on
    scoring_key = sha256 of that, both widths, the grid, the optional column, and the student that was gathered

All of it comes from run.json and from the checkpoint's fingerprint, so every shard of a round has the same key,
whoever computes it. A vLLM teacher is known by its engine and version as run.json recorded them; one behind a server
also by its name there and by what it said of fixed tokens, since its weights' hash is not known.
"""

from typing import Any

from pipeline.config import RunConfig
from pipeline.versions import public
from storage import documents
from storage.errors import UserError

ENGINE = "opd"
ENGINE_VERSION = 2
"""Raise it when the scorer's numbers change by more than rounding. 2: the caps of Gemma 2's attention count."""
PARTIAL_VERSION = 1
"""The same of what is made of vLLM's answers (by_vllm/columns.py)."""


def teacher_key(document: dict[str, Any], config: RunConfig) -> str:
    """sha256 naming what the teacher's columns depend on, their width apart: they are cut to a smaller K elsewhere."""
    return _digest(_teacher(document, config))


def scoring_key(document: dict[str, Any], config: RunConfig, student_fingerprint: str) -> tuple[str, str]:
    """The full sha256 of a round's scores, and the 8 digits that name their folder."""
    full = _digest({
        "teacher": _teacher(document, config),
        "student": {"weights": student_fingerprint, "dtype": config.student.dtype,
                    "attention": config.student.attention, **_students_scorer(document, config)},
        "teacher_top_k": config.score.teacher_top_k,
        "student_top_k": config.score.student_top_k,
        "student_log_probs_at_teacher_topk": config.score.student_log_probs_at_teacher_topk,
        "grid": config.score.grid,
    })
    return full, full[:8]


def _teacher(document: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    facts = document["teacher"]
    scored_by = _vllm(facts, config) or {"attention": config.teacher.attention, **_scorer(document)}
    return {
        "weights": facts["fingerprint"],
        "config": facts["config_hash"],
        "tokenizer": facts["tokenizer_hash"],
        "template": facts["template_hash"],
        "context": None,  # the teacher reads the student's own prompt
        "shared_vocabulary": document["vocabulary"]["shared"],
        "dtype": config.teacher.dtype,
        **scored_by,
    }


def _students_scorer(document: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """What read the student, where the teacher's part does not say it."""
    return {} if config.score.engine.type == "scorer" else _scorer(document)


def _scorer(document: dict[str, Any]) -> dict[str, Any]:
    return {"engine": ENGINE, "engine_version": ENGINE_VERSION, "torch": public(document["versions"]["torch"]),
            "transformers": document["versions"]["transformers"]}


def _vllm(facts: dict[str, Any], config: RunConfig) -> dict[str, Any] | None:
    """What a vLLM teacher is told apart by, None for our scorer: engine and version as run.json recorded them, what a
    server said of fixed tokens, and not where it is. Its canary is rounded to .1 nat: two runs share a key only if the
    server said the same to both."""
    engine = config.score.engine.type
    if engine == "scorer":
        return None
    recorded = facts.get("scored_by") or {}
    if recorded.get("engine") != engine:
        raise UserError(f"score.engine.type = {engine!r}, but this run did not begin with it: start another run")
    return {"attention": None, "engine": engine, "engine_version": recorded["version"],
            "partial_columns": PARTIAL_VERSION, "served": recorded.get("model"),
            "canary": [round(each, 1) for each in recorded.get("canary", [])]}


def _digest(content: dict[str, Any]) -> str:
    return documents.sha256(documents.dump(content))
