"""RunConfig: every key a run understands. Defaults are the vetted recipe; unknown keys are refused.

Sections follow the round: `prompts`, `rollout`, `score`, `mask`, `objective`, `train`, `evaluation`. A section whose
content depends on a `type` is a union; setting the type drops the keys of the old one.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.continuation import Continuation
from pipeline.config.engines import Engine, TransformersEngine
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
from pipeline.config.partial import check_partial_teacher, check_server_engine
from pipeline.config.score import Score
from pipeline.config.section import Dtype, Positive, Section, Share
from pipeline.config.sources import FileSource, GeneratedSource, HubSource, Source
from pipeline.config.trackers import Tracker
from pipeline.config.train import Train
from pipeline.config.workers import Workers
from storage.layout import check_run_id

__all__ = ["FileSource", "GeneratedSource", "HubSource", "Objective", "RunConfig", "SampledToken", "SampledTokenMasked",
           "Source", "TailBucketTopK", "TeacherTopKLsm"]


class Model(Section):
    """Where a model comes from and how it is run."""

    path: str
    """A local folder, or a hub name such as `Qwen/Qwen2.5-7B-Instruct`."""
    revision: str | None = None
    """Commit of a hub model. Required for hub names on runs that must be repeatable; the resolved one is recorded."""
    dtype: Dtype = "float32"
    """Of the weights in rollout and scoring. The trainer always keeps float32 master weights."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """In rollout and scoring. The trainer takes `sdpa` in place of `flash_attention_2`, which has no float32 kernel.
    Models that cap their attention scores (Gemma 2) take `eager` in place of `sdpa`, which has no caps."""
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


class Rollout(Section):
    """How the student writes. Defaults: Revisiting OPD, top-p .9 at temperature 1."""

    engine: Engine = TransformersEngine()
    samples: Positive = 4
    """Rollouts per prompt."""
    temperature: Annotated[float, Field(ge=1e-3, strict=False)] = 1.0
    """For greedy decoding lower `top_p`, not this."""
    top_p: Share = 0.9
    max_new_tokens: Positive = 512


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


DEFAULT_ENGINES = {"rollout": "transformers", "score": "scorer"}


def with_default_types(document: dict) -> dict:
    """`objective.k = 8` alone means the default objective with k = 8, and `rollout.engine.batch_size = 8` the default
    engine; a dotted objective means a custom one."""
    if isinstance(document.get("objective"), dict):
        document = {**document, "objective": spelled_out(document["objective"])}
    for name, default in DEFAULT_ENGINES.items():
        section = document.get(name)
        if isinstance(section, dict) and isinstance(section.get("engine"), dict):
            document = {**document, name: {**section, "engine": {"type": default, **section["engine"]}}}
    return document


NOT_RECORDED = frozenset({"tracker", "workers"})
"""Keys of RunConfig that change nothing a run computes, and may differ whenever it goes on."""


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
    workers: Workers = Workers()
    """Who computes the shards. Not part of the run's identity, and not recorded in run.json."""

    @model_validator(mode="before")
    @classmethod
    def _default_types(cls, document):
        return with_default_types(document) if isinstance(document, dict) else document

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
    def _engines_give_what_is_needed(self):
        check_partial_teacher(self)
        check_server_engine(self)
        return self

    @model_validator(mode="after")
    def _masked_objective_has_a_mask(self):
        masks = {mask.type for mask in self.mask}
        if self.objective.type == "sampled_token_masked" and not masks & {"special_tokens", "detector"}:
            raise ValueError("objective.type = 'sampled_token_masked' needs a [[mask]] of type 'special_tokens' or "
                             "'detector': add one, or use 'sampled_token'")
        return self
