"""What reads the rollouts for the teacher: one section per engine, `type` names it.

Only our scorer gives every column. vLLM returns, for each token, its log-prob, its rank, and the K likeliest ids with
theirs, over its whole head. From that come `teacher_log_prob`, `teacher_rank` and the top-K. Not known, and null:

    teacher_entropy                       always
    teacher_log_tail                      where less than 1e-4 lies outside the top-K: 1 - mass, in vLLM's float32, is
                                          known to 2e-6; above, the column is right within .02 nat
    teacher_log_probs_at_student_topk     at the student's ids that are not among the teacher's K

check_partial_teacher (partial.py) refuses what needs them. The student's columns come from our scorer, and are whole.
"""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Positive, Rate, Section, Share
from pipeline.config.served import Served


class ScorerTeacher(Section):
    """Our scorer: every column."""

    type: Literal["scorer"] = "scorer"


class VllmTeacher(Section):
    """vLLM's prompt_logprobs, in a process of its own, without prefix caching. `teacher.attention` does not apply."""

    type: Literal["vllm"] = "vllm"
    max_num_seqs: Positive = 64
    """Rollouts read together."""
    gpu_memory_utilization: Share = 0.6
    """Share of each GPU that weights and KV cache may take. The student, which our scorer reads, lies beside them, and
    prompt_logprobs take a float32 row of the vocabulary per token of a step."""
    cpu_kv_cache_gb: Rate = 2.0
    """GiB for keys and values where vLLM runs on a CPU."""
    tensor_parallel: Positive = 1
    """GPUs that share the model."""
    max_model_len: Positive | None = None
    """Tokens of a prompt and its rollout, and one; null: the model's own window, or what its KV cache holds."""
    enforce_eager: bool | None = None
    """Without torch.compile and CUDA graphs; null: on a CPU, where compiling takes longer than it saves."""


class VllmServerTeacher(Served):
    """prompt_logprobs of a vLLM server: its --max-logprobs must reach score.teacher_top_k.

    `teacher.path` is a folder with the teacher's tokenizer and config.json; weights need not lie there (a hub name
    works too, and downloads them).
    That the server still is the teacher of the run's start is shown by its version and by log-probs of fixed tokens.
    """

    type: Literal["vllm_server"] = "vllm_server"


TeacherEngine = Annotated[ScorerTeacher | VllmTeacher | VllmServerTeacher, Field(discriminator="type")]
