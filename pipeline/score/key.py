"""The scoring key: scores with one key may be mixed and compared, scores with another lie in another folder.

    teacher_key = sha256 of everything the teacher-only columns depend on
    scoring_key = sha256 of that, both widths, the grid, the optional column, and the student that was gathered

All of it comes from run.json and from the checkpoint's fingerprint, so every shard of a round has the same key,
whoever computes it.
"""

from typing import Any

from pipeline.config import RunConfig
from pipeline.versions import public
from storage import documents

ENGINE = "opd"
ENGINE_VERSION = 1
"""Raise it when the scorer's numbers change by more than rounding."""


def teacher_key(document: dict[str, Any], config: RunConfig) -> str:
    """sha256 naming what the teacher's columns depend on, their width apart: they are cut to a smaller K elsewhere."""
    return _digest(_teacher(document, config))


def scoring_key(document: dict[str, Any], config: RunConfig, student_fingerprint: str) -> tuple[str, str]:
    """The full sha256 of a round's scores, and the 8 digits that name their folder."""
    full = _digest({
        "teacher": _teacher(document, config),
        "student": {"weights": student_fingerprint, "dtype": config.student.dtype,
                    "attention": config.student.attention},
        "teacher_top_k": config.score.teacher_top_k,
        "student_top_k": config.score.student_top_k,
        "student_log_probs_at_teacher_topk": config.score.student_log_probs_at_teacher_topk,
        "grid": config.score.grid,
    })
    return full, full[:8]


def _teacher(document: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    facts = document["teacher"]
    return {
        "weights": facts["fingerprint"],
        "config": facts["config_hash"],
        "tokenizer": facts["tokenizer_hash"],
        "template": facts["template_hash"],
        "context": None,  # the teacher reads the student's own prompt
        "shared_vocabulary": document["vocabulary"]["shared"],
        "dtype": config.teacher.dtype,
        "attention": config.teacher.attention,
        "engine": ENGINE,
        "engine_version": ENGINE_VERSION,
        "torch": public(document["versions"]["torch"]),
        "transformers": document["versions"]["transformers"],
    }


def _digest(content: dict[str, Any]) -> str:
    return documents.sha256(documents.dump(content))
