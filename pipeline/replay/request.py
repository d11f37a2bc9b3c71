"""What a replay or a rescore asks for, and the config it comes to.

A replay keeps what student and teacher wrote and said: it may change the loss, the mask, the training. A rescore keeps
the rollouts alone: it may change the teacher and what is kept of it, too.
"""

from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from pipeline.config import RunConfig
from pipeline.config.load import apply_settings, validate
from pipeline.config.model import NOT_RECORDED
from pipeline.config.objectives import Objective, missing_hidden_states
from storage import documents
from storage.errors import ConfigError, UserError
from storage.layout import check_run_id

REPLAYED = ("seed", "mask", "objective", "train")
"""Keys, with all below them, that a replay may change. Not `threads`: sums would round otherwise than what is
shared."""
RESCORED = (*REPLAYED, "teacher", "score")
MASK_TYPES = ("special_tokens", "detector")
MAX_NAME = 64


@dataclass(frozen=True)
class Request:
    """A branch of round `number` of `run`."""

    run: str
    number: int
    name: str | None = None
    """Id of the branch; None: made from the run, the round and what is changed."""
    settings: list[str] = field(default_factory=list)
    """As `--set` takes them."""
    masks: list[str] | None = None
    """Types of mask, names in sql/masks or .sql files, instead of the run's, or with a + besides them; `none` for no
    mask; None: as the run has them."""
    evaluate: bool = True
    rescore: bool = False

    @property
    def verb(self) -> str:
        return "rescore" if self.rescore else "replay"


def branch_config(parent: RunConfig, request: Request) -> RunConfig:
    """The config of the branch. Raises ConfigError or UserError, one line, for what is wrong or may not change."""
    _refuse_ignored(request)
    document = apply_settings(parent.model_dump(mode="json"), request.settings)
    if request.masks is not None:
        document["mask"] = _masks(document["mask"], request.masks)
    if not request.evaluate:
        document["evaluation"] = None
    if request.rescore and not any(each.startswith("score.reuse=") for each in request.settings):
        document["score"]["reuse"] = True
    document |= {"run": parent.run, "rounds": request.number + 1}
    if not request.rescore:
        _refuse_larger_k(parent, document, request)
        _refuse_missing_hidden(parent, document, request)
    config = validate(document, where=f"of {request.run}, changed by `opd {request.verb}`")
    _refuse_other_changes(parent, config, request)
    return config.model_copy(update={"run": check_run_id(request.name or _name(parent, config, request))})


def _refuse_ignored(request: Request) -> None:
    """Settings that would be overwritten, or that no run.json holds."""
    instead = {"run": "--as names the branch", "rounds": "`opd continue BRANCH --rounds N` goes on with it",
               "store": "--store names it", "tracker": "`opd track BRANCH` shows it elsewhere",
               "workers": "the config that plays it says so"}
    for setting in request.settings:
        key = setting.partition("=")[0].split(".")[0].strip()
        if key in instead:
            raise ConfigError(f"{request.verb} --set {setting}: {instead[key]}")


def changes(parent: RunConfig, config: RunConfig) -> list[str]:
    """Dotted keys in which a branch's config differs, its id and its number of rounds apart."""
    return [key for key in documents.differing_keys(*(each.model_dump(mode="json", exclude=set(NOT_RECORDED))
                                                      for each in (parent, config)))
            if key not in ("run", "rounds")]


def _masks(before: list[dict], names: list[str]) -> list[dict]:
    added = [name.startswith("+") for name in names]
    if any(added) and not all(added):
        raise UserError(f"--mask {' --mask '.join(names)}: names with a + join the run's masks, names without replace "
                        "them: use one kind")
    if "+none" in names:
        raise UserError("--mask +none: none stands alone, for a replay without masks")
    kept = before if all(added) else []
    return [*kept, *(_mask(name.removeprefix("+"), before) for name in names if name != "none")]


def _mask(name: str, before: list[dict]) -> dict:
    """A mask of that name with the run's settings, if it has one."""
    named = {"type": name} if name in MASK_TYPES else {"type": "sql", "file": name}
    return next((each for each in before if named.items() <= each.items()), named)


def _refuse_larger_k(parent: RunConfig, document: dict, request: Request) -> None:
    """Before validation, which would say "store more": what is stored is stored."""
    objective = document.get("objective")
    k = objective.get("k") if isinstance(objective, dict) else None
    side = "student" if k is not None and objective.get("type") == "student_topk" else "teacher"
    stored = getattr(parent.score, f"{side}_top_k")
    if isinstance(k, int) and k > stored:
        raise UserError(f"objective.k = {k}, but round {request.number} of {request.run} holds the {side}'s top "
                        f"{stored}: lower it, or score the round again first with `opd rescore {request.run} --round "
                        f"{request.number} --set score.{side}_top_k={k}`")


def _refuse_missing_hidden(parent: RunConfig, document: dict, request: Request) -> None:
    """The same for the teacher's hidden states."""
    try:
        objective = TypeAdapter(Objective).validate_python(document.get("objective"))
    except ValidationError:  # which the validation of the whole config words
        return
    if parent.score.teacher_hidden_states is None and objective.whole_vocabulary_teacher == "cache":
        raise missing_hidden_states(objective.type, request.run, request.number)


def _refuse_other_changes(parent: RunConfig, config: RunConfig, request: Request) -> None:
    allowed = RESCORED if request.rescore else REPLAYED
    for key in changes(parent, config):
        if key.split(".")[0] in allowed or (key.startswith("evaluation") and not request.evaluate):
            continue
        other = " (`opd rescore` may change teacher and score)" if key.split(".")[0] in RESCORED else ""
        raise ConfigError(f"{request.verb} cannot change {key}: round {request.number} of {request.run} was made with "
                          f"it{other}; start another run for that")


def _name(parent: RunConfig, config: RunConfig, request: Request) -> str:
    """<run>.r<round>.<objective>.<8 digits of what is changed>"""
    what = "scores" if request.rescore else config.objective.type.rpartition(".")[2]
    digest = documents.sha256(config.model_dump_json(exclude={*NOT_RECORDED, "run", "store"}).encode())[:8]
    tail = f".r{request.number}.{what}.{digest}".lower()
    return request.run[:MAX_NAME - len(tail)].rstrip(".-_") + tail
