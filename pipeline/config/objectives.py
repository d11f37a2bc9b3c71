"""[objective]: what the student learns from the cached scores. A preset by name, a composition, or the user's own.

p is the student, q the teacher, S the support, y_t the sampled token. Formulas, sources and limits of every type are in
pipeline/objectives/presets/<type>.py. A `type` with a dot in it, "package.module.name", is short for
{type = "custom", factory = "package.module.name"}.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Positive, Rate, Section
from storage.errors import UserError

Gamma = Annotated[float, Field(ge=0, le=1, strict=False)]
Beta = Annotated[float, Field(ge=0, le=1, strict=False)]
Alpha = Annotated[float, Field(ge=0, lt=1, strict=False)]
ClipLow = Annotated[float, Field(gt=0, le=1, strict=False)]
TeacherFrom = Literal["cache", "live"]

TEACHER, STUDENT = "teacher_top_k", "student_top_k"
"""The stored lists, as [score] names their sizes."""
LISTS_OF_SUPPORT = {"teacher_top_k": (TEACHER,), "student_top_k": (STUDENT,), "union": (TEACHER, STUDENT),
                    "intersection": (TEACHER, STUDENT), "symmetric_difference": (TEACHER, STUDENT), "full": ()}
"""Which stored lists a support is made of, and k cuts."""


class _Objective(Section):
    type: str
    """Stands first in every section; each names its own."""

    @property
    def stored_lists(self) -> tuple[str, ...]:
        """Keys of [score] that k must not exceed."""
        return (TEACHER,)

    @property
    def whole_vocabulary_teacher(self) -> TeacherFrom | None:
        """Where the teacher's whole distribution comes from; None if the cached lists are enough."""
        return None


class _OnTeacherTopK(_Objective):
    k: Positive | None = None
    """Support size; null: all that is stored (score.teacher_top_k)."""


class TeacherTopKLsm(_OnTeacherTopK):
    """Reverse KL on the teacher's top-K, both sides renormalised (Revisiting OPD)."""

    type: Literal["teacher_topk_lsm"] = "teacher_topk_lsm"


class TailBucketTopK(_OnTeacherTopK):
    """Reverse KL on the teacher's top-K plus one bucket for the rest."""

    type: Literal["tail_bucket_topk"] = "tail_bucket_topk"


class ForwardKLTopK(_OnTeacherTopK):
    """Forward KL on the teacher's top-K plus one bucket for the rest: robust to stale rollouts (AsyncOPD)."""

    type: Literal["forward_kl_topk"] = "forward_kl_topk"


class SkewedTopK(_OnTeacherTopK):
    """Skewed reverse KL, KL(p || alpha p + (1 - alpha) q), on the teacher's top-K plus one bucket (DistiLLM)."""

    type: Literal["skewed_topk"] = "skewed_topk"
    alpha: Alpha = 0.1
    """The student's share of the mixture: 0 is the reverse KL, and no loss exceeds -log(alpha)."""


class TruncatedTopK(_OnTeacherTopK):
    """Negative control: raw sum over the teacher's top-K, neither renormalised nor with a tail. Leaks the mass on S."""

    type: Literal["truncated_topk"] = "truncated_topk"


class StopGradientTopK(_Objective):
    """Reverse KL whose log-ratio is a constant (The Many Faces of OPD)."""

    type: Literal["stop_gradient_topk"] = "stop_gradient_topk"
    support: Literal["intersection", "teacher_top_k"] = "intersection"
    """Intersection of both models' top-k, renormalised; or the teacher's top-k, raw."""
    k: Positive | None = None
    """Entries of each list; null: 20, or all that is stored of it if that is less."""

    @property
    def stored_lists(self) -> tuple[str, ...]:
        return LISTS_OF_SUPPORT[self.support]


class StudentTopK(_Objective):
    """Reverse KL on the top-k of the student that wrote the rollouts, both sides renormalised (Rethinking OPD)."""

    type: Literal["student_topk"] = "student_topk"
    form: Literal["loss", "policy_gradient"] = "loss"
    """Back-propagated, or as a clipped policy gradient over the k ids with the advantage of the rollouts' student."""
    clip: Annotated[float, Field(gt=0, lt=1, strict=False)] = 0.2
    """policy_gradient: an id's ratio to the rollouts' student counts within 1 - clip and 1 + clip."""
    k: Positive | None = None
    """Support size; null: all that is stored (score.student_top_k)."""

    @property
    def stored_lists(self) -> tuple[str, ...]:
        return (STUDENT,)


class _OfBothLists(_Objective):
    @property
    def stored_lists(self) -> tuple[str, ...]:
        return (TEACHER, STUDENT)


class UnionTopK(_OfBothLists):
    """Reverse KL on the union of both models' top-k, both sides renormalised."""

    type: Literal["union_topk"] = "union_topk"
    k: Positive | None = None
    """Entries of each list; null: all that is stored."""


class OverlapOnly(_OfBothLists):
    """Reverse KL on the ids that both models' top-k hold, renormalised there (Rethinking OPD, ablation)."""

    type: Literal["overlap_only"] = "overlap_only"


class NonOverlapOnly(_OfBothLists):
    """Reverse KL on the ids that one model's top-k holds alone, renormalised there (Rethinking OPD, ablation)."""

    type: Literal["non_overlap_only"] = "non_overlap_only"


class FullVocabulary(_Objective):
    """Reverse KL over all shared ids (Rethinking OPD, eq. 4)."""

    type: Literal["full_vocabulary"] = "full_vocabulary"
    teacher: TeacherFrom = "cache"
    """Its stored hidden states (score.teacher_hidden_states), or the teacher itself, loaded beside the student."""

    @property
    def whole_vocabulary_teacher(self) -> TeacherFrom | None:
        return self.teacher


class Gkd(_OnTeacherTopK):
    """Generalised Jensen-Shannon divergence (GKD)."""

    type: Literal["gkd"] = "gkd"
    beta: Beta = 0.5
    """The teacher's share of the mixture: 0 is the forward KL, 1 the reverse KL."""
    support: Literal["teacher_top_k", "full"] = "teacher_top_k"
    """The teacher's top-k plus one bucket for the rest, or all shared ids."""
    teacher: TeacherFrom | None = None
    """support = 'full': the teacher's stored hidden states, or the teacher itself; null: cache."""

    @property
    def whole_vocabulary_teacher(self) -> TeacherFrom | None:
        return (self.teacher or "cache") if self.support == "full" else None

    @model_validator(mode="after")
    def _keys_go_together(self):
        _refuse_keys_of_other_supports(self)
        return self


class Dense(_Objective):
    """Any composition of support, divergence, outside mass and stop-gradient."""

    type: Literal["dense"] = "dense"
    support: Literal["teacher_top_k", "student_top_k", "union", "intersection", "symmetric_difference",
                     "full"] = "teacher_top_k"
    divergence: Literal["reverse_kl", "forward_kl", "jsd", "skewed"] = "reverse_kl"
    outside: Literal["renormalise", "tail_bucket", "truncate"] | None = None
    """What becomes of the mass outside the support; null: renormalise, and nothing is outside of 'full'."""
    stop_gradient: bool = False
    """The student's log-prob inside the log-ratio of reverse_kl is a constant."""
    k: Positive | None = None
    """Entries of each list; null: all that is stored."""
    beta: Beta | None = None
    """divergence = 'jsd': as in gkd; null: .5."""
    alpha: Alpha | None = None
    """divergence = 'skewed': as in skewed_topk; null: .1."""
    teacher: TeacherFrom | None = None
    """support = 'full': the teacher's stored hidden states, or the teacher itself; null: cache."""

    @property
    def stored_lists(self) -> tuple[str, ...]:
        return LISTS_OF_SUPPORT[self.support]

    @property
    def whole_vocabulary_teacher(self) -> TeacherFrom | None:
        return (self.teacher or "cache") if self.support == "full" else None

    @model_validator(mode="after")
    def _keys_go_together(self):
        _refuse_keys_of_other_supports(self)
        if self.support == "full" and self.outside:
            raise ValueError(f"objective.outside = {self.outside!r} with objective.support = 'full': nothing is "
                             "outside of it, drop one of the two")
        if self.stop_gradient and self.divergence != "reverse_kl":
            raise ValueError(f"objective.stop_gradient = true with objective.divergence = {self.divergence!r}: it is "
                             "of reverse_kl alone (forward_kl would have no gradient left); drop one of the two")
        for key, divergence in (("beta", "jsd"), ("alpha", "skewed")):
            if getattr(self, key) is not None and self.divergence != divergence:
                raise ValueError(f"objective.{key} is of objective.divergence = {divergence!r}, not of "
                                 f"{self.divergence!r}: drop it")
        return self


class _PolicyGradient(_Objective):
    """Keys of a policy gradient on the sampled token: L_t = -sg(A_t) log p(y_t), with what is set here."""

    gamma: Gamma = 0.0
    """Of A_t = sum_{t' >= t} gamma^(t' - t) (log q - log p)(y_t'): 0 is token level, 1 causal sequence level."""
    advantage: Literal["rollout", "current"] = "rollout"
    """p in A_t: of the student that wrote the rollouts, or of the student in training, without gradient."""
    ratio: Literal["none", "ppo", "truncated_is", "cispo", "two_sided"] = "none"
    """What is made of rho_t = p(y_t) / density that y_t was sampled from: nothing; PPO's clipped surrogate; a weight
    min(rho, ratio_cap); a clipped weight (CISPO); a weight rho that is 0 outside its bounds (MOPD)."""
    clip_low: ClipLow = 0.2
    """ppo, cispo, two_sided: the lower bound of rho is 1 - clip_low."""
    clip_high: Rate = 0.2
    """ppo, cispo, two_sided: the upper bound of rho is 1 + clip_high."""
    ratio_cap: Rate = 2.0
    """truncated_is: the largest weight."""
    baseline: Literal["none", "kl"] = "none"
    """kl: subtracts -KL(p_0 || q) on the stored top-k of the rollouts' student and one bucket for the rest (vOPD)."""
    advantage_clip: Rate | None = None
    """Clips A_t, less its baseline, to +- this many nats; null: never."""


class SampledToken(_PolicyGradient):
    """Policy gradient on the sampled token, advantage log q - log p (Thinking Machines; Rethinking OPD)."""

    type: Literal["sampled_token"] = "sampled_token"


class SampledTokenMasked(_PolicyGradient):
    """The same; refuses to run without a special-token mask (Revisiting OPD)."""

    type: Literal["sampled_token_masked"] = "sampled_token_masked"


class Lightning(_Objective):
    """Policy gradient on the sampled token with A = log q cached - log p current, clipped, no ratio (Lightning OPD)."""

    type: Literal["lightning"] = "lightning"
    clip: Rate = 10.0
    """A is clipped to +- this many nats."""


class Custom(_Objective):
    """The user's own: a factory in an installed package or in the folder where opd runs. Its code runs."""

    type: Literal["custom"] = "custom"
    factory: str
    """"package.module:name" or "package.module.name": called with `options`, returns an Objective
    (pipeline/objectives/objective.py)."""
    options: dict[str, Any] = {}
    """Keyword arguments of the factory."""

    @property
    def stored_lists(self) -> tuple[str, ...]:
        return ()

    @field_validator("factory")
    @classmethod
    def _names_a_module_and_a_name(cls, factory: str) -> str:
        module, _, name = factory.replace(":", ".", 1).rpartition(".")
        if not module or not all(part.isidentifier() for part in [*module.split("."), name]):
            raise ValueError(f"objective.factory = {factory!r} does not name a module and something in it: write "
                             "'package.module:name'")
        return factory


Objective = Annotated[
    TeacherTopKLsm | StudentTopK | UnionTopK | OverlapOnly | NonOverlapOnly | TailBucketTopK | ForwardKLTopK | Gkd
    | SkewedTopK | StopGradientTopK | TruncatedTopK | FullVocabulary | SampledToken | SampledTokenMasked | Lightning
    | Dense | Custom, Field(discriminator="type")]


SECTIONS = get_args(get_args(Objective)[0])
TYPES = [section.model_fields["type"].default for section in SECTIONS]
"""Names of all objectives, `dense` and `custom` among them."""


def spelled_out(section: dict) -> dict:
    """`section` with a default type, and a type that is a dotted name written as a custom objective."""
    kind = section.get("type", "teacher_topk_lsm")
    if isinstance(kind, str) and ("." in kind or ":" in kind) and "factory" not in section:
        return {**section, "type": "custom", "factory": kind}
    return {**section, "type": kind}


def check_stored(objective: Objective, stored: dict[str, int], hidden_states: str | None) -> None:
    """Raise ValueError, one line, if [score] does not keep what `objective` needs."""
    k = getattr(objective, "k", None)
    for name in objective.stored_lists:
        if k is not None and k > stored[name]:
            raise ValueError(f"objective.k = {k} is larger than score.{name} = {stored[name]}: lower it or store more")
    if objective.whole_vocabulary_teacher == "cache" and hidden_states is None:
        raise ValueError(f"objective.type = {objective.type!r} over the whole vocabulary needs the teacher's hidden "
                         "states: set score.teacher_hidden_states = 'bfloat16', or objective.teacher = 'live'")


def missing_hidden_states(objective: str, run: str, number: int) -> UserError:
    """What to say of an objective that reads the teacher's hidden states in a round that has none."""
    return UserError(f"objective {objective} needs the teacher's hidden states, which round {number} of {run} does not "
                     f"have: score it again with `opd rescore {run} --round {number} --set "
                     "score.teacher_hidden_states=bfloat16`, or set objective.teacher = 'live'")


def _refuse_keys_of_other_supports(objective: Gkd | Dense) -> None:
    whole = objective.support == "full"
    for key, fits in (("k", not whole), ("teacher", whole)):
        if getattr(objective, key) is not None and not fits:
            raise ValueError(f"objective.{key} = {getattr(objective, key)!r} with objective.support = "
                             f"{objective.support!r}: {_WHY[key]}, drop one of the two")


_WHY = {"k": "it takes all shared ids", "teacher": "the cached lists are all it needs"}
