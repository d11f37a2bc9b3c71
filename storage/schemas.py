"""Columns of every table, with their units. Public: a test freezes them.

Units: log-probs are natural logarithms at temperature 1 over the vocabulary both models share; entropies are in
nats; positions count from 0 in `response_tokens`; ids are token ids of the student's tokenizer. K is the number of
teacher entries per position, k the number of student entries.
"""

from dataclasses import dataclass

import pyarrow as pa

TOKEN_LIST = pa.list_(pa.field("item", pa.int32(), nullable=False))
FLOAT_LIST = pa.list_(pa.field("item", pa.float32(), nullable=False))
SPAN_LIST = pa.list_(pa.struct([pa.field("start", pa.int32(), nullable=False),
                                pa.field("end", pa.int32(), nullable=False)]))
SAMPLING = pa.struct([("temperature", pa.float32()), ("top_p", pa.float32()), ("max_new_tokens", pa.int32())])


def _required(name: str, kind: pa.DataType, unit: str) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"unit": unit})


def _optional(name: str, kind: pa.DataType, unit: str) -> pa.Field:
    return pa.field(name, kind, nullable=True, metadata={"unit": unit})


PROMPTS = pa.schema([
    _required("prompt_id", pa.int64(), "63-bit hash of the prompt's content"),
    _required("task", pa.string(), "name; routes teachers and splits metrics"),
    _required("data_source", pa.string(), "name of the data set"),
    _required("source_row", pa.int64(), "row of the data set, from 0"),
    _required("messages", pa.string(), "JSON list of {role, content}"),
    _optional("ground_truth", pa.string(), "reference answer"),
    _optional("solution", pa.string(), "reference solution, for privileged contexts"),
    _required("prompt_tokens", TOKEN_LIST, "token ids"),
])
"""One row per prompt of the round, in the order of the plan."""

ROLLOUTS = pa.schema([
    _required("rollout_id", pa.int64(), "63-bit hash of run seed, round, prompt, sample"),
    _required("prompt_id", pa.int64(), "prompts.prompt_id"),
    _required("sample", pa.int32(), "from 0, within the prompt"),
    _required("task", pa.string(), "prompts.task"),
    _required("data_source", pa.string(), "prompts.data_source"),
    _required("messages", pa.string(), "JSON list of {role, content}"),
    _optional("ground_truth", pa.string(), "reference answer"),
    _required("prompt_tokens", TOKEN_LIST, "token ids"),
    _required("response_tokens", TOKEN_LIST, "token ids, EOS included when it was sampled"),
    _required("response_text", pa.string(), "decoded view of response_tokens; never re-encoded"),
    _required("finish_reason", pa.string(), "stop | length"),
    _required("turns", SPAN_LIST, "[start, end) spans of response_tokens written by the student"),
    _optional("reward", pa.float32(), "1 right, 0 wrong, null without ground truth"),
    _required("policy_version", pa.string(), "sha256 fingerprint of the checkpoint that wrote it"),
    _required("engine", pa.string(), "name and version"),
    _required("sampling", SAMPLING, "temperature, nucleus mass, tokens"),
    _required("seed", pa.int64(), "of this rollout alone"),
    _required("token_hash", pa.string(), "sha256 over prompt and response token ids"),
    _required("rollout_log_probs", FLOAT_LIST, "nats, the engine's, raw, one per response token"),
    _required("sampling_log_probs", FLOAT_LIST, "nats, under temperature and nucleus, one per response token"),
])
"""One row per rollout, sorted by (prompt_id, rollout_id)."""

MASK = pa.schema([
    _required("rollout_id", pa.int64(), "rollouts.rollout_id"),
    _required("position", pa.int32(), "index into response_tokens"),
    _required("weight", pa.float32(), "factor on this token's loss; 0 masks it"),
    _required("reasons", pa.list_(pa.string()), "masks that touched it; empty where none did"),
])
"""One row per row of `tokens`, in its order."""

STEPS = pa.schema([
    _required("step", pa.int64(), "optimizer steps since the run began, from 1"),
    _required("step_in_round", pa.int32(), "from 1"),
    _required("loss", pa.float64(), "as optimised: per unmasked token, or as the config's [train] says; nats"),
    _required("learning_rate", pa.float64(), "of this step"),
    _required("grad_norm", pa.float64(), "l2, before clipping"),
    _required("rollouts", pa.int32(), "in this step"),
    _required("tokens", pa.int64(), "response tokens in this step"),
    _required("unmasked_tokens", pa.int64(), "with a weight other than 0"),
    _required("staleness", pa.int32(), "optimizer steps between the rollouts' checkpoint and this step's start"),
    _optional("stopped", pa.string(), "drift_fuse: the step was not applied and ended the round's training; else null"),
    _optional("drift", pa.float64(), "KL(p_0 || p_now) over the cached student top-k and its tail, nats"),
    _optional("ess", pa.float64(), "effective sample size of p_now / p_0 on the sampled tokens, share of 1"),
    _optional("student_mass", pa.float64(), "current student's mass on the teacher's top-K"),
    _optional("opd_reverse_kl", pa.float64(), "mean log p - log q on sampled tokens, nats"),
    _optional("teacher_kl", pa.float64(), "KL(p_now || q) on the teacher's top-K and one bucket for the rest, nats"),
    _optional("student_entropy", pa.float64(), "p_now's, over the whole vocabulary, nats"),
    _optional("topk_left", pa.float64(), "share of p_now's top-k that the cached student top-k lacks"),
    _required("probe_tokens", pa.int32(), "positions behind drift to topk_left: the fixed 1/32"),
])
"""One row per optimizer step."""

EVALUATION = pa.schema([
    _required("prompt_id", pa.int64(), "63-bit hash of the problem's content"),
    _required("sample", pa.int32(), "from 0"),
    _required("task", pa.string(), "name of the benchmark"),
    _required("data_source", pa.string(), "name of the data set"),
    _required("messages", pa.string(), "JSON list of {role, content}"),
    _required("model", pa.string(), "sha256 fingerprint of the graded model"),
    _required("role", pa.string(), "student | start | teacher"),
    _required("response_text", pa.string(), "decoded view"),
    _required("response_tokens", pa.int32(), "count"),
    _required("finish_reason", pa.string(), "stop | length"),
    _optional("answer", pa.string(), "what was read out of the response"),
    _required("ground_truth", pa.string(), "reference answer"),
    _required("correct", pa.bool_(), "verdict"),
    _required("verdict_reason", pa.string(), "why"),
    _required("seed", pa.int64(), "of this sample"),
])
"""One row per graded sample."""


CONTINUATION = pa.schema([
    _required("rollout_id", pa.int64(), "rollouts.rollout_id"),
    _required("prompt_id", pa.int64(), "prompts.prompt_id"),
    _required("task", pa.string(), "prompts.task"),
    _required("depth", pa.int32(), "response tokens of the rollout that were kept as a prefix"),
    _required("role", pa.string(), "student (which wrote the rollout) | teacher: who went on from there"),
    _required("sample", pa.int32(), "from 0, within rollout, depth and role"),
    _required("model", pa.string(), "sha256 fingerprint of who went on"),
    _required("response_text", pa.string(), "decoded view of the continuation, without the prefix"),
    _required("response_tokens", pa.int32(), "count, of the continuation"),
    _required("finish_reason", pa.string(), "stop | length"),
    _required("correct", pa.bool_(), "verdict on prefix and continuation together"),
    _required("verdict_reason", pa.string(), "why"),
    _required("prefix_correct", pa.bool_(), "verdict on the rollout as the student ended it"),
    _required("seed", pa.int64(), "of this sample"),
])
"""One row per continuation."""


def hidden(bytes_per_token: int) -> pa.Schema:
    """The teacher's final hidden states, one row per row of `tokens`, in its order; the receipt's facts say how they
    are coded (`dtype`, `width`)."""
    return pa.schema([
        _required("rollout_id", pa.int64(), "rollouts.rollout_id"),
        _required("position", pa.int32(), "index into response_tokens"),
        _required("scale", pa.float32(), "factor of the stored numbers; 1 for bfloat16"),
        _required("hidden", pa.binary(bytes_per_token), "what the teacher's head is applied to, little-endian"),
    ])


@dataclass(frozen=True)
class TopK:
    """Widths of the top-K columns of a `tokens` table."""

    teacher: int
    student: int
    student_at_teacher: bool = False
    partial_teacher: bool = False
    """Scored by a teacher that does not know all: the columns of UNKNOWN_TO_VLLM may be null."""


UNKNOWN_TO_VLLM = ("teacher_entropy", "teacher_log_tail", "teacher_log_probs_at_student_topk")
"""Null where a vLLM teacher (pipeline/config/teachers.py) does not give them; in the list, entry by entry."""


def tokens(width: TopK) -> pa.Schema:
    """One row per student-written token, sorted by (prompt_id, rollout_id, position), under one scoring key.

    Lists are fixed-size, in descending order of the model that owns them; log-probs in lists lie on the grid.
    `student_log_probs_at_teacher_topk` is there only if `width.student_at_teacher`; what a vLLM teacher may not know is
    nullable only if `width.partial_teacher`.
    """
    def fixed(kind, size, nullable=False):
        return pa.list_(pa.field("item", kind, nullable=nullable), size)

    maybe = _optional if width.partial_teacher else _required

    fields = [
        _required("rollout_id", pa.int64(), "rollouts.rollout_id"),
        _required("prompt_id", pa.int64(), "prompts.prompt_id"),
        _required("task", pa.string(), "prompts.task"),
        _required("position", pa.int32(), "index into response_tokens"),
        _required("token_id", pa.int32(), "the sampled token"),
        _required("rollout_log_prob", pa.float32(), "nats, the engine's, raw"),
        _required("sampling_log_prob", pa.float32(), "nats, of the density that was sampled"),
        _required("student_log_prob", pa.float32(), "nats, same checkpoint, our scorer"),
        _required("student_entropy", pa.float32(), "nats"),
        _required("teacher_log_prob", pa.float32(), "nats"),
        _required("teacher_rank", pa.int32(), "from 1"),
        maybe("teacher_entropy", pa.float32(), "nats"),
        maybe("teacher_log_tail", pa.float32(), "nats, teacher's log mass outside the teacher's top-K"),
        _required("student_log_tail", pa.float32(), "nats, student's log mass outside the teacher's top-K"),
        _required("teacher_topk_ids", fixed(pa.int32(), width.teacher), "token ids"),
        _required("teacher_topk_log_probs", fixed(pa.float32(), width.teacher), "nats, on the grid"),
        _required("student_topk_ids", fixed(pa.int32(), width.student), "token ids"),
        _required("student_topk_log_probs", fixed(pa.float32(), width.student), "nats, on the grid"),
        _required("teacher_log_probs_at_student_topk", fixed(pa.float32(), width.student, width.partial_teacher),
                  "nats, on the grid"),
    ]
    if width.student_at_teacher:
        fields.append(_required("student_log_probs_at_teacher_topk", fixed(pa.float32(), width.teacher),
                                "nats, on the grid"))
    fields.append(_optional("reused_from", pa.string(), "manifest id of the round whose payload was reused"))
    return pa.schema(fields)


FIXED_TABLES = {"prompts": PROMPTS, "rollouts": ROLLOUTS, "continuation": CONTINUATION, "mask": MASK, "steps": STEPS,
                "evaluation": EVALUATION}
"""Tables whose columns do not depend on the config."""
