"""Starting a run: everything that can be wrong is found before the store is touched, then run.json is put.

run.json holds the resolved config, versions, and what both models are; checkpoint=0 is a copy of the student.
"""

from pathlib import Path

from pipeline.config import RunConfig
from pipeline.config.model import NOT_RECORDED
from pipeline.config.partial import check_masks_partial
from pipeline.config.paths import absolute
from pipeline.track.interface import check_libraries
from pipeline.versions import versions
from pipeline.vllm.checks import check_devices, check_engine, visible_devices
from storage.documents import differing_keys
from storage.errors import MissingObject, UserError
from storage.objects import ObjectStore, open_store, store_exists
from storage.rounds import create_run, put_checkpoint, read_run


def start_run(config: RunConfig, *, here: bool = False) -> dict:
    """Create the run in its store, or find it there. Returns run.json. `here`: this machine is to play it.

    Raises UserError, before anything is written, for models that do not fit each other, a K larger than the shared
    vocabulary, too few prompts, or GPUs that are not here; and if the run exists with another config (only `rounds` may
    grow).
    """
    check_libraries(config.tracker)
    check_engine(config.rollout.engine)
    document = existing_run(config)
    if document is None:
        if here:
            check_gpus_here(config)
        document = describe_run(config)
        store = open_store(config.store, create=True)
        document = create_run(store, config.run, {**document, "student_checkpoint": copy_student(store, config)})
    refuse_other_config(config, document)
    return document


def existing_run(config: RunConfig) -> dict | None:
    """run.json of this run, or None if there is no store or no run yet."""
    if not store_exists(config.store):
        return None
    try:
        return read_run(open_store(config.store), config.run)
    except MissingObject:
        return None


def describe_run(config: RunConfig) -> dict:
    """run.json without the student's copy. Loads tokenizers and prompts, no weights; writes nothing."""
    from pipeline.continuation.plan import check_continuation
    from pipeline.evaluate.problems import check_benchmarks
    from pipeline.mask.stage import check_config
    from pipeline.models import load_tokenizer, model_facts
    from pipeline.prompts.pool import check_pool
    from pipeline.score.teacher_facts import teacher_facts

    refuse_foreign_code(config)
    config = config.model_copy(update={"threads": config.threads or default_threads()})
    check_rollout_server(config)
    student, tokenizer = model_facts(config.student), load_tokenizer(config.student)
    found = teacher_facts(config, tokenizer, student["vocab_size"])
    check_widths(config, found["vocabulary"]["shared"])
    sql_masks = check_config(config.mask, tokenizer)
    check_masks_partial(config, sql_masks)
    pool = check_pool(config)
    check_continuation(config, pool)
    return {"config": config.model_dump(mode="json", exclude=set(NOT_RECORDED)), "format": 1, "versions": versions(),
            "student": student, **found, "branch": None,
            "sql_masks": sql_masks, "objective_source": check_objective(config),
            "prompt_pool": pool,
            "benchmarks": check_benchmarks(config)}


def check_gpus_here(config: RunConfig) -> None:
    """Raise UserError for engines that this machine has too few GPUs for."""
    for section, engine in (("rollout", config.rollout.engine), ("score", config.score.engine)):
        if engine.type == "vllm":
            check_devices(engine, len(visible_devices()), section)


def check_rollout_server(config: RunConfig) -> None:
    """Raise UserError for a rollout server that does not answer or serves something else."""
    if config.rollout.engine.type == "vllm_server":
        from pipeline.rollout.server_engine import check_server

        check_server(config.rollout.engine)


def check_objective(config: RunConfig) -> str | None:
    """Build the objective once; returns the hash of a custom one's source. Raises UserError if it cannot be."""
    from pipeline.objectives import build
    from pipeline.objectives.custom import source_sha256

    build(config.objective, config.train.reduction)
    return source_sha256(config.objective)


def check_widths(config: RunConfig, shared: int) -> None:
    """Raise UserError for a list that would be longer than the vocabulary both models share."""
    for side, k in (("teacher", config.score.teacher_top_k), ("student", config.score.student_top_k)):
        if k > shared:
            raise UserError(f"score.{side}_top_k = {k} is larger than the {shared} tokens both models share: lower it")


def refuse_foreign_code(config: RunConfig) -> None:
    """A checkpoint keeps no code, so a student that needs its own could not even be loaded for round 0."""
    if config.student.trust_remote_code:
        raise UserError("student.trust_remote_code = true cannot work: checkpoints keep weights and no code; use a "
                        "student that transformers knows (a teacher may bring code)")


def default_threads() -> int:
    """What `threads` = null means here; recorded, so that a run keeps it on another host."""
    import torch

    return torch.get_num_threads()


def copy_student(store: ObjectStore, config: RunConfig) -> dict:
    """Put the starting student as checkpoint=0; returns its files."""
    from pipeline.models import resolve

    return put_checkpoint(store, config.run, 0, Path(resolve(config.student))).as_dict()


def refuse_other_config(config: RunConfig, document: dict) -> None:
    """Raise UserError naming the first keys in which `config` differs from the stored run's; also for edited masks."""
    from pipeline.mask.sources import refuse_edited

    free = {"rounds", "store", *NOT_RECORDED}  # a run may be extended, watched from elsewhere, and a store may be moved
    if config.threads is None:
        free.add("threads")  # null stands for what was resolved when the run began
    stored = RunConfig.model_validate({**document["config"], "store": config.store})  # with keys that came later
    mine, theirs = ({key: value for key, value in absolute(each.model_dump(mode="json")).items() if key not in free}
                    for each in (config, stored))
    differing = differing_keys(mine, theirs)
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(f"run {config.run} exists with another {', '.join(differing[:3])}{more}: use another run id, "
                        "or the config it began with (only `rounds` may change)")
    refuse_edited(config.mask, document)
