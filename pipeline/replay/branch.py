"""A branch: a run of its own that begins at a round of another run and shares that round's files.

    run.json   the parent's, with the changed config, the versions here, and {branch: {run, round, manifest, verb}}
    plan.json  the parent's plan of that round; its evaluation grades the new student
    receipts   of the stages that are kept: the parent's receipts, naming the parent's files
    ...        everything else is played, as in any run

The branch's rounds before that one are the parent's, so it starts from the same checkpoint, is queried, reported,
verified and continued like any run, and its next rounds ask the prompts that the parent's next rounds ask. Whatever
can be wrong is found before anything is written; the same request again goes on where it was interrupted.
"""

from dataclasses import asdict, replace

from pipeline.config import RunConfig
from pipeline.config.model import SqlMask
from pipeline.context import RoundContext, open_context
from pipeline.replay.request import Request, branch_config, changes, missing_hidden
from pipeline.versions import versions
from storage import documents, layout
from storage.errors import MissingObject, UserError
from storage.objects import ObjectStore, open_store
from storage.records import EvaluationShard, Plan, Receipt
from storage.rounds import (
    Round,
    committed_rounds,
    create_run,
    local_checkpoint,
    parent_manifest,
    read_run,
    starting_checkpoint,
)

KEPT = {"replay": ("prompts", "rollout", "score", "hidden", "continuation"), "rescore": ("prompts", "rollout")}
"""Stages whose receipts a branch takes over as they are."""


def make_branch(store_url: str, request: Request) -> RoundContext:
    """Create the branch, or find it, up to where its own work begins; returns its first own round.

    Raises UserError for a round that has not got that far, a change that its files do not allow, a branch that exists
    with another config.
    """
    source, config, changed = requested(store_url, request)
    store, parent = source.store, read_run(source.store, request.run)
    _refuse_missing_hidden(source, changed, request)
    document = _document(store, parent, config, changed, request)
    kept = kept_receipts(source, parent, document, changed, request)
    _create(store, changed, document)
    context = open_context(store_url, changed.run, request.number)
    if not context.round.planned():
        context.round.put_plan(branch_plan(source, context, kept))
    for receipt in kept:
        context.round.share(receipt)
    return context


def requested(store_url: str, request: Request) -> tuple[Round, RunConfig, RunConfig]:
    """The round that is branched, its run's config, and the branch's. Raises UserError for most of what can be wrong;
    needs no model and no torch."""
    store = open_store(store_url)
    source = source_round(store, request)
    config = RunConfig.model_validate({**read_run(store, request.run)["config"], "store": store_url})
    return source, config, branch_config(config, request)


def source_round(store: ObjectStore, request: Request) -> Round:
    """The round that is asked for. Raises UserError if there is none, or if it has not got as far as is needed."""
    try:
        read_run(store, request.run)
    except MissingObject:
        raise UserError(f"run {request.run} is not in the store {store.url}: `opd sql \"SELECT DISTINCT run FROM "
                        "rounds\"` lists them") from None
    source = Round(store, request.run, request.number)
    if request.number < 0 or not source.planned():
        done = len(committed_rounds(store, request.run))
        has = f"has rounds 0 to {done - 1}" if done else "has no rounds yet"
        raise UserError(f"{request.run} has no round {request.number} to {request.verb}: it {has}")
    for stage in KEPT[request.verb]:
        if source.pending(stage):
            raise UserError(f"round {request.number} of {request.run} cannot be branched: its {stage} is not finished; "
                            f"go on with `opd continue {request.run}`")
    return source


def _refuse_missing_hidden(source: Round, config: RunConfig, request: Request) -> None:
    """For custom objectives, which have to be built to be asked."""
    from pipeline.objectives.needs import TEACHER_HIDDEN, needs

    if not request.rescore and TEACHER_HIDDEN in needs(config.objective) and not source.plan().hidden:
        raise missing_hidden(config.objective, request)


def _document(store: ObjectStore, parent: dict, config: RunConfig, changed: RunConfig, request: Request) -> dict:
    """run.json of the branch."""
    from pipeline.mask.stage import check_config
    from pipeline.models import load_tokenizer
    from pipeline.start import check_objective

    start = starting_checkpoint(store, request.run, request.number)
    tokenizer = load_tokenizer(local_checkpoint(store, start), trust_remote_code=changed.student.trust_remote_code)
    masks = parent["sql_masks"]
    if request.masks is not None or changed.mask != config.mask:
        masks = check_config(changed.mask, tokenizer)
    teacher = _teacher(parent, config, changed, tokenizer)
    manifest = parent_manifest(store, request.run, request.number)
    return {**parent, **teacher, "config": changed.model_dump(mode="json", exclude={"tracker", "store"}),
            "versions": versions(), "sql_masks": masks, "objective_source": check_objective(changed),
            "benchmarks": parent["benchmarks"] if changed.evaluation else None,
            "branch": {"run": request.run, "round": request.number, "manifest": manifest, "verb": request.verb,
                       "changed": changes(config, changed)}}


def _teacher(parent: dict, config: RunConfig, changed: RunConfig, tokenizer) -> dict:
    """What run.json says of the teacher and of the vocabulary that both models share."""
    from pipeline.models import load_tokenizer, model_facts, vocabulary_agreement
    from pipeline.start import check_widths

    found = {"teacher": parent["teacher"], "vocabulary": parent["vocabulary"]}
    if changed.teacher != config.teacher:
        facts = model_facts(changed.teacher)
        agreement = vocabulary_agreement(tokenizer, load_tokenizer(changed.teacher),
                                         student_rows=parent["student"]["vocab_size"], teacher_rows=facts["vocab_size"])
        found = {"teacher": facts, "vocabulary": asdict(agreement)}
    check_widths(changed, found["vocabulary"]["shared"])
    return found


def kept_receipts(source: Round, parent: dict, document: dict, config: RunConfig, request: Request) -> list[Receipt]:
    """The source's receipts that count in the branch as well: what none of the changes touches."""
    stages = list(KEPT[request.verb])
    before = RunConfig.model_validate({**parent["config"], "store": config.store})
    same_teacher = parent["teacher"] == document["teacher"]
    if request.rescore and same_teacher:
        stages += ["continuation"] if not source.pending("continuation") else []
        stages += _same_scores(source, before, config)
    if "score" in stages and _same_masks(before, config, parent, document) and not source.pending("mask"):
        stages.append("mask")
    receipts = [receipt for stage in stages for receipt in source.receipts(stage)]
    roles = {"start"} | ({"teacher"} if same_teacher else set())
    ends = {shard.index for shard in source.plan().evaluation if shard.role in roles and config.evaluation}
    return receipts + [receipt for receipt in source.receipts("evaluate") if receipt.shard in ends]


def _same_scores(source: Round, before: RunConfig, config: RunConfig) -> list[str]:
    """Score and hidden, where the same teacher is asked for the same."""
    settings = [each.score.model_dump(exclude={"reuse", "batch_tokens", "head_rows", "teacher_hidden_states"})
                for each in (before, config)]
    if settings[0] != settings[1] or source.pending("score"):
        return []
    same = before.score.teacher_hidden_states == config.score.teacher_hidden_states
    return ["score", "hidden"] if same and not source.pending("hidden") else ["score"]


def _same_masks(before: RunConfig, config: RunConfig, parent: dict, document: dict) -> bool:
    files = [mask.file for mask in config.mask if isinstance(mask, SqlMask)]
    return before.mask == config.mask and all(parent["sql_masks"].get(file) == document["sql_masks"].get(file)
                                              for file in files)


def branch_plan(source: Round, context: RoundContext, kept: list[Receipt]) -> Plan:
    """The source's plan, for the branch: the same prompts and seeds, the new student graded."""
    plan, config = source.plan(), context.config
    stages = {receipt.stage for receipt in kept}
    hidden = plan.hidden if "hidden" in stages or context.document["branch"]["verb"] == "replay" else (
        config.score.teacher_hidden_states is not None)
    return replace(plan, seed=config.seed, hidden=hidden, evaluation=_evaluation(source, config),
                   continuation=plan.continuation if "continuation" in stages else [])


def _evaluation(source: Round, config: RunConfig) -> list[EvaluationShard]:
    """The source's shards; the student's too where the source was not due: comparing is what a branch is for."""
    if config.evaluation is None:
        return []
    shards = source.plan().evaluation
    if not any(shard.role == "student" for shard in shards):
        start = [shard for shard in Round(source.store, source.run, 0).plan().evaluation if shard.role == "start"]
        shards = [*shards, *(replace(shard, role="student") for shard in start)]
    return [replace(shard, index=index) for index, shard in enumerate(shards)]


def shared_shards(context: RoundContext) -> dict[str, int]:
    """Stage -> how many of its shards lie in another run."""
    own = layout.run_prefix(context.run)
    counts = {stage: sum(not receipt.file.key.startswith(own) for receipt in context.round.receipts(stage))
              for stage in layout.STAGES}
    return {stage: count for stage, count in counts.items() if count}


def _create(store: ObjectStore, config: RunConfig, document: dict) -> None:
    try:
        create_run(store, config.run, document)
    except UserError:
        stored = read_run(store, config.run)
        differing = [key for key in documents.differing_keys(stored, document) if key != "config.rounds"]
        raise UserError(f"branch {config.run} exists already, with another {', '.join(differing[:3])}: choose another "
                        f"name with --as, or go on with it: `opd continue {config.run}`") from None
