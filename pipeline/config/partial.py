"""What a config needs that its engines do not give: refused before a run begins.

A vLLM teacher leaves columns unknown (teachers.py); a vLLM server holds one model, whose weights somebody gives it.
"""

import re
from collections.abc import Mapping

from storage.errors import UserError

UNKNOWN = ("teacher_entropy", "teacher_log_tail", "teacher_log_probs_at_student_topk")
"""Columns of `tokens` that a vLLM teacher gives in part or not at all."""
DERIVED = {"teacher_mass": "teacher_log_tail", "mass_inside": "teacher_log_tail"}
"""What SQL makes of them under other names."""
_TAIL, _AT_STUDENT = "teacher_log_tail", "teacher_log_probs_at_student_topk"
_OUTSIDE_LISTS = ("student_top_k", "union", "symmetric_difference")
"""Supports with ids that are not in the teacher's list."""
_NEEDS = {"tail_bucket_topk": _TAIL, "forward_kl_topk": _TAIL, "skewed_topk": _TAIL, "student_topk": _AT_STUDENT,
          "union_topk": _AT_STUDENT, "non_overlap_only": _AT_STUDENT}
"""Presets that read a column which is not there."""


def check_partial_teacher(config) -> None:
    """Raise ValueError, one line, if a RunConfig with a vLLM teacher needs a column that such a teacher does not give,
    or with a served one what only the teacher's weights can."""
    engine = config.score.engine.type
    if engine == "scorer":
        return
    column = needed_column(config.objective)
    if column is not None:
        raise ValueError(f"objective.type = {config.objective.type!r} needs {column}, which score.engine.type = "
                         f"{engine!r} does not give: use score.engine.type = 'scorer', or teacher_topk_lsm, "
                         "overlap_only, sampled_token or lightning")
    if engine == "vllm_server":
        _check_needs_no_weights(config)


def check_server_engine(config) -> None:
    """Raise ValueError, one line, if a RunConfig asks a rollout server for what one model at a time cannot do."""
    if config.rollout.engine.type != "vllm_server":
        return
    if config.rollout.temperature < 0.01:
        raise ValueError("rollout.temperature below 0.01: a vLLM server takes none; for greedy decoding lower "
                         "rollout.top_p")
    if config.continuation is not None:
        raise ValueError("[continuation] lets the teacher write too, which rollout.engine.type = 'vllm_server' cannot: "
                         "drop the section, or use another engine")
    if config.evaluation is not None and config.evaluation.teacher:
        raise ValueError("evaluation.teacher = true needs an engine that can load the teacher, rollout.engine.type = "
                         "'vllm_server' cannot: set evaluation.teacher = false")
    if config.evaluation is not None and config.rollout.engine.reload == "none":
        raise ValueError("[evaluation] grades the student that a round ends with, which the rollout server does not "
                         "hold yet: set rollout.engine.reload = 'rpc', or drop the section")


def check_masks_partial(config, sql_masks: Mapping[str, str]) -> None:
    """Raise UserError if a SQL mask (file -> text) names a column that the config's teacher does not give."""
    if config.score.engine.type == "scorer":
        return
    for file, text in sql_masks.items():
        statement = re.sub(r"--[^\n]*", "", text)
        for name in (*UNKNOWN, *DERIVED):
            if re.search(rf"\b{name}\b", statement, re.IGNORECASE):
                raise UserError(f"mask {file} reads {name}, which score.engine.type = {config.score.engine.type!r} "
                                "does not give (null): use score.engine.type = 'scorer', or another mask")


def needed_column(objective) -> str | None:
    """The first column that an objective reads and a vLLM teacher does not give; None if it can do without."""
    kind = objective.type
    if kind == "custom":
        return "every column (nobody but its author knows which it reads)"
    if kind == "gkd":
        return _TAIL if objective.support != "full" else None
    if kind == "dense":
        if objective.support in _OUTSIDE_LISTS:
            return _AT_STUDENT
        return _TAIL if objective.outside == "tail_bucket" else None
    if getattr(objective, "baseline", "none") == "kl":
        return _AT_STUDENT
    return _NEEDS.get(kind)


def _check_needs_no_weights(config) -> None:
    for asked, key in ((config.score.teacher_hidden_states is not None, "score.teacher_hidden_states"),
                       (config.objective.whole_vocabulary_teacher is not None, "an objective of the whole vocabulary"),
                       (config.evaluation is not None and config.evaluation.teacher, "evaluation.teacher = true"),
                       (config.continuation is not None, "[continuation]")):
        if asked:
            raise ValueError(f"{key} needs the teacher's weights, score.engine.type = 'vllm_server' has its answers "
                             "alone: drop one of the two")
