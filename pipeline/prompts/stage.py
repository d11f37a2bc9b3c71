"""The prompts stage: a round's plan, and its prompts as rows.

    opd prompts --run R --round 3 [--shard 7]

The plan names each shard's prompts and the seeds of their rollouts, before any work. A shard's table holds the
prompts as they are given to the student: messages, reference answer, token ids.
"""

from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.context import RoundContext
from pipeline.continuation.plan import plan_continuation
from pipeline.evaluate.plan import plan_evaluation
from pipeline.prompts.draw import draw_round, rollout_seed
from pipeline.prompts.pool import Pool, Prompt, build_pool, read_prompts, rebuild_pool
from pipeline.prompts.templates import encode
from storage import documents, layout, schemas
from storage.errors import UserError
from storage.rounds import Plan, PlanShard, Receipt, parent_manifest, starting_checkpoint
from storage.shards import checked_path


def plan_round(context: RoundContext) -> Plan:
    """Put the round's plan; returns the one that counts."""
    pool = rebuild_pool(context.config.prompts, context.document["prompt_pool"], lambda: _tokenizer(context))
    shards = _shards(context.config, pool, context.number, context.prompt_seed)
    return context.round.put_plan(Plan(
        round=context.number, seed=context.prompt_seed,
        parent=parent_manifest(context.store, context.run, context.number),
        checkpoint=starting_checkpoint(context.store, context.run, context.number).fingerprint,
        shards=shards, facts=pool.facts,
        evaluation=plan_evaluation(context.config, context.document["benchmarks"], context.number),
        continuation=plan_continuation(context.config, shards, context.number),
        hidden=context.config.score.teacher_hidden_states is not None))


def preview_plan(config: RunConfig, benchmarks: dict | None, number: int) -> dict:
    """What `plan_round` would put: shards, evaluation, continuation and facts. Writes nothing."""
    from pipeline.models import load_tokenizer

    pool = build_pool(config.prompts, load_tokenizer(config.student))
    shards = _shards(config, pool, number, config.seed)
    return {"round": number, "seed": config.seed, "shards": [asdict(shard) for shard in shards], "facts": pool.facts,
            "evaluation": [asdict(shard) for shard in plan_evaluation(config, benchmarks, number)],
            "continuation": [asdict(shard) for shard in plan_continuation(config, shards, number)],
            "hidden": config.score.teacher_hidden_states is not None}


def run(context: RoundContext, shard: int) -> Receipt:
    """Write the prompts of one shard."""
    plan = context.round.plan()
    found, _ = read_prompts(context.config.prompts)
    missing = [each for each in plan.shards[shard].prompt_ids if each not in found]
    if missing:
        raise UserError(f"prompts.source changed since round {context.number} was planned: {len(missing)} prompts of "
                        f"shard {shard} are not in it any more; put the old data back")
    prompts = [found[each] for each in plan.shards[shard].prompt_ids]
    tokens = encode([each.messages for each in prompts], _tokenizer(context))
    key = layout.plan(context.run, context.number)
    return context.round.finish(
        "prompts", shard, "prompts", _table(prompts, tokens),
        inputs={key: documents.sha256(context.store.get(key))},
        facts={"prompts": len(prompts), "prompt_tokens": sum(map(len, tokens))})


def _shards(config: RunConfig, pool: Pool, number: int, seed: int) -> list[PlanShard]:
    """The round's prompts, sorted by id, cut into shards."""
    per_shard, samples = config.prompts.per_shard, range(config.rollout.samples)
    drawn = sorted(draw_round(pool.prompt_ids, seed, number, config.prompts.per_round))
    parts = [drawn[start:start + per_shard] for start in range(0, len(drawn), per_shard)]
    return [PlanShard(index, part, [[rollout_seed(seed, number, prompt_id, sample) for sample in samples]
                                    for prompt_id in part])
            for index, part in enumerate(parts)]


def _table(prompts: list[Prompt], tokens: list[list[int]]) -> pa.Table:
    rows = [{**vars(prompt), "prompt_tokens": ids} for prompt, ids in zip(prompts, tokens)]
    return pa.Table.from_pylist(rows, schema=schemas.PROMPTS)


def _tokenizer(context: RoundContext):
    """The tokenizer of the checkpoint that starts the round, from the store, its files' hashes checked."""
    from pipeline.models import load_tokenizer

    files = starting_checkpoint(context.store, context.run, context.number).files
    paths = [checked_path(context.store, file.key, file.size, file.sha256)
             for file in files if not file.key.endswith(".safetensors")]
    return load_tokenizer(Path(paths[0]).parent, trust_remote_code=context.config.student.trust_remote_code)
