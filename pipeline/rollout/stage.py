"""The rollout stage: the student answers the prompts of a shard, several times each.

    opd rollout --run R --round 3 [--shard 7]

Reads the shard's prompts and the checkpoint that starts the round. Writes one row per rollout, sorted by
(prompt_id, rollout_id), with the tokens that were drawn and both log-probs of each. The checkpoint is loaded once
per process, for all of its shards.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.context import RoundContext
from pipeline.evaluate.answers import is_correct
from pipeline.prompts.draw import rollout_id
from pipeline.provenance import planned_checkpoint
from pipeline.rollout.engine import Generations, RolloutEngine, open_engine, sampling_of
from pipeline.tokens import token_hash
from storage import schemas
from storage.rounds import Receipt, local_checkpoint


def run(context: RoundContext, shard: int) -> Receipt:
    """Write the rollouts of one shard."""
    start = planned_checkpoint(context)
    folder = local_checkpoint(context.store, start)
    engine = open_engine(context.config.rollout.engine, context.config.student, folder)
    requests = _requests(context, shard)
    generations = engine.generate(
        [each["prompt_tokens"] for each in requests], [each["seed"] for each in requests],
        sampling_of(context.config.rollout, context.document),
        lambda done, total: context.progress("rollouts", done, total))
    table = _table(context, requests, generations, engine, start.fingerprint, folder)
    inputs = {file.key: file.sha256 for file in start.files} | context.round.input_files("prompts", shard)
    context.notes.update(_proof(engine))
    return context.round.finish("rollout", shard, "rollouts", table, inputs=inputs, facts=_facts(table))


def _requests(context: RoundContext, shard: int) -> list[dict]:
    """One dict per rollout: its prompt's columns, sample, seed and id; sorted by (prompt_id, rollout_id)."""
    seeds = context.round.plan().shards[shard].rollout_seeds
    prompts = context.round.read("prompts", shard).to_pylist()
    requests = [{**prompt, "sample": sample, "seed": seed,
                 "rollout_id": rollout_id(context.prompt_seed, context.number, prompt["prompt_id"], sample)}
                for prompt, of_prompt in zip(prompts, seeds, strict=True) for sample, seed in enumerate(of_prompt)]
    return sorted(requests, key=lambda each: (each["prompt_id"], each["rollout_id"]))


def _table(context: RoundContext, requests: list[dict], generations: Generations, engine: RolloutEngine,
           policy: str, folder: Path) -> pa.Table:
    from pipeline.models import load_tokenizer

    texts, graded_texts = generations.texts(
        load_tokenizer(folder, trust_remote_code=context.config.student.trust_remote_code))
    settings, lengths = context.config.rollout, np.diff(generations.offsets).tolist()
    rows = {
        "response_text": texts, "finish_reason": list(generations.finish_reasons),
        "turns": [[{"start": 0, "end": length}] for length in lengths],
        "reward": [_reward(text, each["ground_truth"]) for text, each in zip(graded_texts, requests)],
        "policy_version": [policy] * len(requests), "engine": [engine.name_and_version] * len(requests),
        "sampling": [{"temperature": settings.temperature, "top_p": settings.top_p,
                      "max_new_tokens": settings.max_new_tokens}] * len(requests),
        "token_hash": [token_hash(each["prompt_tokens"], generations.tokens(i)) for i, each in enumerate(requests)],
        "response_tokens": _lists(schemas.TOKEN_LIST, generations.offsets, generations.token_ids),
        "rollout_log_probs": _lists(schemas.FLOAT_LIST, generations.offsets, generations.log_probs),
        "sampling_log_probs": _lists(schemas.FLOAT_LIST, generations.offsets, generations.sampling_log_probs),
    }
    columns = [rows[name] if name in rows else [each[name] for each in requests] for name in schemas.ROLLOUTS.names]
    return pa.table([_array(column, field.type) for column, field in zip(columns, schemas.ROLLOUTS)],
                    schema=schemas.ROLLOUTS)


def _reward(text: str, ground_truth: str | None) -> float | None:
    return None if ground_truth is None else float(is_correct(text, ground_truth)[0])


def _lists(kind: pa.DataType, offsets: np.ndarray, values: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind.value_type), type=kind)


def _array(column, kind: pa.DataType) -> pa.Array:
    return column if isinstance(column, pa.Array) else pa.array(column, kind)


def _proof(engine: RolloutEngine) -> dict:
    """How an engine of another library showed that it has the checkpoint's weights (proof.py, server_proof.py): for
    the shard's timings. On what it was shown depends on where a process began, and whether it was reloaded; a run
    that was interrupted must end with the receipts, and so the manifest id, of one that was not."""
    proof = getattr(engine, "proof", None)
    return {} if proof is None else {"engine_proof": proof}


def _facts(table: pa.Table) -> dict:
    """Counts of the shard; `right` among the `graded`."""
    rewards = [each for each in table["reward"].to_pylist() if each is not None]
    return {"rollouts": table.num_rows, "response_tokens": len(table["response_tokens"].combine_chunks().values),
            "truncated": table["finish_reason"].to_pylist().count("length"),
            "graded": len(rewards), "right": int(sum(rewards))}
