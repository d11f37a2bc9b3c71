"""A branch: a run of its own that begins at a round of another run and shares that round's files.

    run.json   the parent's, with the changed config, the versions here, and {branch: {run, round, manifest, verb, ...}}
    receipts   of the stages that are kept: the parent's receipts, naming the parent's files
    plan.json  the parent's plan of that round; its evaluation grades the new student
    ...        everything else is played, as in any run

The branch's rounds before that one are the parent's, so it starts from the same checkpoint, is queried, reported,
verified and continued like any run, and its next rounds ask the prompts that the parent's next rounds ask. Whatever
can be wrong is found before anything is written. One that was interrupted while it was made is completed by the same
request, or by whoever goes on with it: run.json says all that is needed.
"""

from dataclasses import replace

from pipeline.config import RunConfig
from pipeline.config.model import NOT_RECORDED, SqlMask
from pipeline.config.objectives import missing_hidden_states
from pipeline.config.partial import check_masks_partial
from pipeline.context import RoundContext, open_context
from pipeline.replay.request import Request, branch_config, changes
from pipeline.versions import COMPARED, public, versions
from storage import documents, layout
from storage.errors import MissingObject, UserError
from storage.objects import ObjectStore, exists, open_store
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
"""Stages that a branch takes over as they are, whatever is changed."""


def make_branch(store_url: str, request: Request) -> RoundContext:
    """Create the branch, or find it, up to where its own work begins; returns its first own round.

    Raises UserError for a round that has not got that far, a change that its files do not allow, a branch that exists
    with another config.
    """
    request, source, config, changed = requested(store_url, request)
    _refuse_missing_hidden(source, changed, request)
    _create(source.store, changed, _document(source, config, changed, request))
    context = open_context(store_url, changed.run, request.number)
    complete(context)
    return context


def requested(store_url: str, request: Request) -> tuple[Request, Round, RunConfig, RunConfig]:
    """The request as one of the run that has the round, that round, its run's config, and the branch's.

    A branch's first rounds are its parent's, made under the parent's config: a branch at one of them is a branch of
    the parent. Raises UserError for most of what can be wrong; needs no model and no torch.
    """
    store = open_store(store_url)
    source = source_round(store, request)
    request = replace(request, run=source.run)
    config = RunConfig.model_validate({**read_run(store, source.run)["config"], "store": store_url})
    return request, source, config, branch_config(config, request)


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


def complete(context: RoundContext) -> None:
    """Put the kept receipts and then the plan of a branch's first own round. Doing it again changes nothing.

    The plan comes last: a round without one is not played, so nothing that is kept is ever computed anew.
    """
    if context.round.planned():
        return
    branch = context.document["branch"]
    source = Round(context.store, branch["run"], branch["round"])
    kept = kept_receipts(source, context)
    plan = branch_plan(source, context, {receipt.stage for receipt in kept})
    for receipt in kept:
        if receipt.shard in plan.shard_indices(receipt.stage):
            context.round.share(receipt)
    context.round.put_plan(plan)


def kept_receipts(source: Round, context: RoundContext) -> list[Receipt]:
    """The source's receipts that count in the branch as well: what none of the changes touches."""
    parent = read_run(source.store, source.run)
    before = RunConfig.model_validate({**parent["config"], "store": context.config.store})
    same_teacher = parent["teacher"] == context.document["teacher"]
    stages = list(KEPT[context.document["branch"]["verb"]])
    if "score" not in stages:
        stages += _same_scores(source, before, context)
        stages += ["continuation"] if same_teacher and not source.pending("continuation") else []
    if "score" in stages and _same_masks(before, parent, context) and not source.pending("mask"):
        stages.append("mask")
    roles = {"start"} | ({"teacher"} if same_teacher else set())
    ends = {shard.index for shard in source.plan().evaluation if shard.role in roles and context.config.evaluation}
    return ([receipt for stage in stages for receipt in source.receipts(stage)]
            + [receipt for receipt in source.receipts("evaluate") if receipt.shard in ends])


def _same_scores(source: Round, before: RunConfig, context: RoundContext) -> list[str]:
    """Score and hidden, where everything that their numbers depend on is the same."""
    from pipeline.score.key import scoring_key

    if source.pending("score"):
        return []
    start = starting_checkpoint(source.store, source.run, source.number)
    wanted, _ = scoring_key(context.document, context.config, start.fingerprint)
    if {receipt.facts["scoring_key"] for receipt in source.receipts("score")} != {wanted}:
        return []
    same = before.score.teacher_hidden_states == context.config.score.teacher_hidden_states
    return ["score", "hidden"] if same and not source.pending("hidden") else ["score"]


def _same_masks(before: RunConfig, parent: dict, context: RoundContext) -> bool:
    files = [mask.file for mask in context.config.mask if isinstance(mask, SqlMask)]
    return before.mask == context.config.mask and all(
        parent["sql_masks"].get(file) == context.document["sql_masks"].get(file) for file in files)


def branch_plan(source: Round, context: RoundContext, kept: set[str]) -> Plan:
    """The source's plan, for the branch: the same prompts and seeds, the new student graded."""
    from pipeline.continuation.plan import plan_continuation

    plan, config = source.plan(), context.config
    replayed = context.document["branch"]["verb"] == "replay"
    continuation = plan.continuation if "continuation" in kept or replayed else plan_continuation(
        config, plan.shards, source.number)
    hidden = plan.hidden if replayed else config.score.teacher_hidden_states is not None
    same_teacher = read_run(source.store, source.run)["teacher"] == context.document["teacher"]
    return replace(plan, hidden=hidden, continuation=continuation,
                   evaluation=_evaluation(source, config, new_teacher=not same_teacher))


def _evaluation(source: Round, config: RunConfig, new_teacher: bool) -> list[EvaluationShard]:
    """The source's shards; the student's too where the source was not due, since comparing is what a branch is for; and
    those of a teacher that no earlier round has graded."""
    if config.evaluation is None:
        return []
    shards, first = source.plan().evaluation, Round(source.store, source.run, 0).plan().evaluation
    start = [shard for shard in first if shard.role == "start"]
    for role, wanted in (("teacher", new_teacher and config.evaluation.teacher), ("student", True)):
        if wanted and not any(shard.role == role for shard in shards):
            shards = [*shards, *(replace(shard, role=role) for shard in start)]
    return [replace(shard, index=index) for index, shard in enumerate(shards)]


def shared_shards(context: RoundContext) -> dict[str, int]:
    """Stage -> how many of its shards lie in another run."""
    own = layout.run_prefix(context.run)
    counts = {stage: sum(not receipt.file.key.startswith(own) for receipt in context.round.receipts(stage))
              for stage in layout.STAGES}
    return {stage: count for stage, count in counts.items() if count}


# --- run.json ---


def _document(source: Round, config: RunConfig, changed: RunConfig, request: Request) -> dict:
    """run.json of the branch."""
    from pipeline.models import load_tokenizer
    from pipeline.start import check_objective

    parent = read_run(source.store, source.run)
    start = starting_checkpoint(source.store, source.run, source.number)
    tokenizer = load_tokenizer(local_checkpoint(source.store, start),
                               trust_remote_code=changed.student.trust_remote_code)
    masks, objective = _mask_texts(parent, config, changed, tokenizer), check_objective(changed)
    edited = ["objective_source"] if changed.objective == config.objective and objective != parent.get(
        "objective_source") else []
    return {**parent, **_teacher(parent, config, changed, tokenizer), "versions": versions(), "sql_masks": masks,
            "config": changed.model_dump(mode="json", exclude={*NOT_RECORDED, "store"}), "objective_source": objective,
            "benchmarks": parent["benchmarks"] if changed.evaluation else None,
            "branch": {"run": source.run, "round": source.number, "verb": request.verb,
                       "manifest": parent_manifest(source.store, source.run, source.number),
                       "prompt_seed": (parent["branch"] or {}).get("prompt_seed", config.seed),
                       "made_with": parent["versions"], "changed": changes(config, changed) + edited}}


def _mask_texts(parent: dict, config: RunConfig, changed: RunConfig, tokenizer) -> dict[str, str]:
    """SQL of the masks: what run.json recorded for those that the run had, whatever their files say now."""
    from pipeline.mask.stage import check_config

    before = {mask.file for mask in config.mask if isinstance(mask, SqlMask)}
    new = [mask for mask in changed.mask if not (isinstance(mask, SqlMask) and mask.file in before)]
    kept = {mask.file: parent["sql_masks"][mask.file] for mask in changed.mask
            if isinstance(mask, SqlMask) and mask.file in before}
    texts = kept | check_config(new, tokenizer)
    check_masks_partial(changed, texts)
    return texts


def _teacher(parent: dict, config: RunConfig, changed: RunConfig, tokenizer) -> dict:
    """What run.json says of the teacher and of the vocabulary that both models share."""
    from pipeline.score.teacher_facts import teacher_facts
    from pipeline.start import check_widths

    found = {"teacher": parent["teacher"], "vocabulary": parent["vocabulary"]}
    if changed.teacher != config.teacher or changed.score.engine != config.score.engine:
        found = teacher_facts(changed, tokenizer, parent["student"]["vocab_size"])
    check_widths(changed, found["vocabulary"]["shared"])
    return found


def _refuse_missing_hidden(source: Round, config: RunConfig, request: Request) -> None:
    """For custom objectives, which have to be built to be asked."""
    from pipeline.objectives.custom import whole_vocabulary_teacher

    if not request.rescore and whole_vocabulary_teacher(config.objective) == "cache" and not source.plan().hidden:
        raise missing_hidden_states(config.objective.type, request.run, request.number)


def _create(store: ObjectStore, config: RunConfig, document: dict) -> None:
    """Put run.json, or find the same one; versions that decide about no number may differ."""
    stored = read_run(store, config.run) if exists(store, layout.run_json(config.run)) else None
    if stored and _comparable(stored["versions"]) == _comparable(document["versions"]):
        document = {**document, "versions": stored["versions"]}
    try:
        create_run(store, config.run, document)
    except UserError:
        differing = [key for key in documents.differing_keys(read_run(store, config.run), document)
                     if key != "config.rounds"]
        raise UserError(f"branch {config.run} exists already, with another {', '.join(differing[:3])}: choose another "
                        f"name with --as, or go on with it: `opd continue {config.run}`") from None


def _comparable(found: dict[str, str]) -> list[str]:
    return [public(found.get(name, "none")) for name in COMPARED]
