"""RunConfig: every key a run understands. Defaults are the vetted recipe; unknown keys are refused.

Sections follow the round: `prompts`, `rollout`, `score`, `mask`, `objective`, `train`, `evaluation`. A section whose
content depends on a `type` is a union; setting the type drops the keys of the old one.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.continuation import Continuation
from pipeline.config.evaluation import Evaluation
from pipeline.config.objectives import (
    Objective,
    SampledToken,
    SampledTokenMasked,
    TailBucketTopK,
    TeacherTopKLsm,
    check_stored,
    spelled_out,
)
from pipeline.config.section import Count, Decay, Positive, Rate, Section, Share
from pipeline.config.sources import FileSource, GeneratedSource, HubSource, Source
from pipeline.config.trackers import Tracker
from storage.layout import check_run_id

__all__ = ["FileSource", "GeneratedSource", "HubSource", "Objective", "RunConfig", "SampledToken", "SampledTokenMasked",
           "Source", "TailBucketTopK", "TeacherTopKLsm"]

Dtype = Literal["float32", "bfloat16"]


class Model(Section):
    """Where a model comes from and how it is run."""

    path: str
    """A local folder, or a hub name such as `Qwen/Qwen2.5-7B-Instruct`."""
    revision: str | None = None
    """Commit of a hub model. Required for hub names on runs that must be repeatable; the resolved one is recorded."""
    dtype: Dtype = "float32"
    """Of the weights in rollout and scoring. The trainer always keeps float32 master weights."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """In rollout and scoring. The trainer takes `sdpa` in place of `flash_attention_2`, which has no float32 kernel."""
    trust_remote_code: bool = False
    """Runs code that came with the weights: for a teacher only, since a student's copies hold no code. Recorded."""

    @model_validator(mode="after")
    def _attention_fits_the_dtype(self):
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            raise ValueError(f"attention = 'flash_attention_2' with dtype = 'float32' ({self.path}): it has no float32 "
                             "kernel; set dtype = 'bfloat16', or attention = 'sdpa'")
        return self


# --- prompts ---------------------------------------------------------------------------------------------------


class Prompts(Section):
    """Which problems a round asks, drawn without replacement until the source is used up."""

    source: Source
    task: str = "math"
    """Name in the `task` column."""
    template: str = "{question}"
    """User message; `{question}` is replaced by the row's question."""
    system: str | None = None
    """System message, if any."""
    per_round: Positive = 64
    """Prompts in each round."""
    per_shard: Positive = 16
    """Prompts in each shard: the unit of work, of resume and of retries."""
    max_prompt_tokens: Positive = 2048
    """Longer prompts are dropped and counted."""


# --- rollout ---------------------------------------------------------------------------------------------------


class TransformersEngine(Section):
    """Models and KV caches of transformers, decoded in batches that shrink as rollouts end."""

    type: Literal["transformers"] = "transformers"
    batch_size: Positive = 64
    """Rollouts decoded together."""


Engine = TransformersEngine
"""Becomes a union on `type` with the second engine."""


class Rollout(Section):
    """How the student writes. Defaults: Revisiting OPD, top-p .9 at temperature 1."""

    engine: Engine = TransformersEngine()
    samples: Positive = 4
    """Rollouts per prompt."""
    temperature: Annotated[float, Field(ge=1e-3, strict=False)] = 1.0
    """For greedy decoding lower `top_p`, not this."""
    top_p: Share = 0.9
    max_new_tokens: Positive = 512


# --- score -----------------------------------------------------------------------------------------------------


class Score(Section):
    """What one pass over the rollouts keeps."""

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


# --- mask ------------------------------------------------------------------------------------------------------


class SpecialTokens(Section):
    """Zero weight for the first occurrence per response of each listed token (Revisiting OPD, section 4)."""

    type: Literal["special_tokens"] = "special_tokens"
    tokens: list[str] = ["<", "think", "<|im_end|>"]
    occurrences: Literal["first", "all"] = "first"


class Detector(Section):
    """Zero weight for tokens on which the teacher systematically disagrees with a sure student."""

    type: Literal["detector"] = "detector"
    max_log_ratio: float = Field(default=-10.0, strict=False)
    """Flags tokens whose mean(log q - log p) is below this, in nats."""
    min_student_prob: Share = 0.5
    """... and whose mean student probability is above this."""
    min_count: Positive = 8
    """... seen at least so often in the round."""


class SqlMask(Section):
    """A SELECT returning (rollout_id, position, weight, reason) over `tokens`, `rollouts`, `history`, `$round`."""

    type: Literal["sql"] = "sql"
    file: str
    """A name from sql/masks/ (without .sql) or the path of a .sql file."""


Mask = Annotated[SpecialTokens | Detector | SqlMask, Field(discriminator="type")]


# --- train -----------------------------------------------------------------------------------------------------


class Train(Section):
    """AdamW over the cached round."""

    learning_rate: Rate = 2e-6
    warmup_steps: Count = 10
    """Linear, counted over the whole run, not per round: a fresh Adam without it costs most of the first rounds."""
    rollouts_per_step: Positive = 64
    epochs: Positive = 1
    """Passes over the round's rollouts."""
    micro_batch_tokens: Positive = 8192
    """Tokens (prompts included) per forward pass; a step accumulates as many as it needs."""
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    eps: Rate = 1e-8
    weight_decay: float = Field(default=0.0, ge=0, strict=False)
    max_grad_norm: Rate = 1.0
    precision: Dtype = "float32"
    """Of the forward pass; bfloat16 keeps float32 master weights."""
    gradient_checkpointing: bool = False
    """Keeps only the input of each layer and computes the layer again in the backward pass: the same gradients for one
    more forward pass, in memory that long responses of a large student fit into."""
    reduction: Literal["token_mean", "sequence_mean"] = "token_mean"
    """A step's loss is the mean over its tokens (Revisiting OPD), or over its rollouts of the mean in each."""
    denominator: Literal["unmasked", "all"] = "unmasked"
    """The token mean divides by unmasked tokens, or by all response tokens."""
    age_cap: Positive | None = None
    """Most optimizer steps on one round's rollouts; null: 4 for objectives of the sampled token, 8 for all others."""
    drift_fuse: Rate | None = 0.05
    """Nats of KL(p_0 || p_now), over the cached student top-k and its tail on the probed 1/32 of a step's positions, at
    which the round's training ends early, before that step is applied; null: never."""

    @model_validator(mode="after")
    def _denominator_is_of_the_token_mean(self):
        if self.reduction == "sequence_mean" and self.denominator == "all":
            raise ValueError("train.denominator = 'all' is of the token mean, and train.reduction = 'sequence_mean' "
                             "divides by rollouts: drop one of the two")
        return self


def with_default_objective(document: dict) -> dict:
    """`objective.k = 8` alone means the default objective with k = 8; a dotted type means a custom one."""
    objective = document.get("objective")
    if not isinstance(objective, dict):
        return document
    return {**document, "objective": spelled_out(objective)}


class RunConfig(Section):
    """A whole distillation run."""

    run: str
    """Id of the run: a-z 0-9 . _ -, at most 64."""
    store: str = "./opd-store"
    """A folder, or s3://bucket/prefix."""
    rounds: Positive = 1
    """Planned rounds; may be raised later, to go on."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides prompts, rollouts and the order of training."""
    threads: Positive | None = None
    """CPU threads of each stage; null: torch's default where the run starts, recorded in run.json and kept."""
    student: Model
    teacher: Model
    prompts: Prompts
    rollout: Rollout = Rollout()
    score: Score = Score()
    mask: list[Mask] = []
    objective: Objective = TeacherTopKLsm()
    train: Train = Train()
    continuation: Continuation | None = None
    """Lets student and teacher go on from prefixes of the rollouts; null: never."""
    evaluation: Evaluation | None = None
    """Grades the student on held-out problems after its rounds; null: never."""
    tracker: list[Tracker] = []
    """Where the steps are shown besides the store. Not part of the run's identity, and not recorded in run.json."""

    @model_validator(mode="before")
    @classmethod
    def _default_objective(cls, document):
        return with_default_objective(document) if isinstance(document, dict) else document

    @field_validator("run")
    @classmethod
    def _clean_run_id(cls, run: str) -> str:
        return check_run_id(run)

    @model_validator(mode="after")
    def _objective_fits_the_cache(self):
        stored = {"teacher_top_k": self.score.teacher_top_k, "student_top_k": self.score.student_top_k}
        check_stored(self.objective, stored, self.score.teacher_hidden_states)
        return self

    @model_validator(mode="after")
    def _masked_objective_has_a_mask(self):
        masks = {mask.type for mask in self.mask}
        if self.objective.type == "sampled_token_masked" and not masks & {"special_tokens", "detector"}:
            raise ValueError("objective.type = 'sampled_token_masked' needs a [[mask]] of type 'special_tokens' or "
                             "'detector': add one, or use 'sampled_token'")
        return self
