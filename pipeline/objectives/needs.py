"""What an objective needs besides the columns that every round has."""

from pipeline.config.objectives import Custom, Objective

TEACHER_HIDDEN = "teacher_hidden"
"""The teacher's stored hidden states (score.teacher_hidden_states)."""
TEACHER = "teacher"
"""The teacher itself, loaded beside the student."""
_NEED = {"cache": TEACHER_HIDDEN, "live": TEACHER}


def needs(config: Objective) -> frozenset[str]:
    """Of `teacher_hidden` and `teacher`, what training with this objective cannot do without.

    A custom objective is built to ask it. Raises UserError if it cannot be built.
    """
    if isinstance(config, Custom):
        from pipeline.objectives.custom import load

        objective = load(config)
        source = objective.teacher if objective.whole_vocabulary else None
    else:
        source = config.whole_vocabulary_teacher
    return frozenset([_NEED[source]] if source else [])
