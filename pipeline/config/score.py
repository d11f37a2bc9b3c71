"""[score]: what one pass of teacher and student over the rollouts keeps, and how it is run."""

from typing import Literal

from pipeline.config.section import Positive, Section
from pipeline.config.teachers import ScorerTeacher, TeacherEngine


class Score(Section):
    """What one pass over the rollouts keeps."""

    engine: TeacherEngine = ScorerTeacher()
    """What reads the rollouts for the teacher; the student is always read by our scorer."""
    teacher_top_k: Positive = 32
    student_top_k: Positive = 16
    student_log_probs_at_teacher_topk: bool = False
    """Adds about 40 bytes per token; exact drift on the teacher's support needs it."""
    grid: Literal[16, 32] = 32
    """Log-probs in top-K lists are multiples of 1/grid nat."""
    batch_tokens: Positive = 8192
    """Tokens (prompts included) per forward pass."""
    head_rows: Positive = 1024
    """Response rows per chunk of the head: bounds memory at head_rows x vocabulary logits per model."""
    reuse: bool = False
    """Takes the teacher's columns from rounds of the same store that scored the same tokens with the same teacher. Off:
    a shard's bytes then depend on the config alone, and not on what else lies in the store."""
    teacher_hidden_states: Literal["bfloat16", "float8"] | None = None
    """Keeps the teacher's last hidden state of every token, and its head once: for objectives over the whole
    vocabulary without a teacher. 2 bytes per token and width, or 1."""
