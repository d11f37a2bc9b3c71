"""Two rounds whose rollouts and answers real vLLM writes, in one process: reloaded between rounds, proved in each."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline import stages
from pipeline.config import load_config
from pipeline.context import open_context
from pipeline.models import load_model
from pipeline.rollout import engine as engines
from pipeline.start import start_run
from pipeline.vllm.start import EngineFailed
from storage import catalog
from storage.layout import STAGES
from storage.rounds import local_checkpoint, starting_checkpoint
from storage.snapshot import take_snapshot
from tests.rollout.conftest import ENGINE_SETTINGS, save_student
from tests.tiny import make_tiny

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def two_rounds(vllm_engine, tmp_path_factory):
    """Contexts of both rounds of a run, committed; and the process ids of the engine after each."""
    folder = tmp_path_factory.mktemp("run")
    make_tiny(folder)
    for name, seed in (("student", 1), ("teacher", 2)):
        save_student(folder / name, seed)
    config = load_config(folder / "config.toml", [*ENGINE_SETTINGS, "train.learning_rate=0.01"])
    start_run(config)
    contexts, pids = [open_context(config.store, config.run, number) for number in range(2)], []
    for context in contexts:
        _play(context)
        pids.append(engines._opened.engine.pids)
        engines.rest()  # nothing to do on a CPU
    return contexts, pids


def test_one_engine_serves_rollouts_and_answers_of_both_rounds(two_rounds):
    _, (first, second) = two_rounds
    assert first == second


def test_the_timings_of_a_round_hold_the_proof_of_its_weights(two_rounds):
    for context in two_rounds[0]:
        proofs = proofs_of(context)
        assert len(proofs) == 4 and all(proof == proofs[0] for proof in proofs)
        assert proofs[0]["log_prob_difference"] < 1e-5
    assert proofs[0]["moved"] > 1e-3, "round 1 began with a reload"


def proofs_of(context) -> list[dict]:
    """By shard, as SQL shows them."""
    sql = "SELECT details FROM timings WHERE round = $number AND stage = 'rollout' ORDER BY shard"
    snapshot = take_snapshot(context.store, in_progress=True)
    with catalog.connect(context.store, snapshot, threads=1) as connection:
        rows = catalog.query(connection, sql, {"number": context.number}).to_pylist()
    return [json.loads(row["details"])["engine_proof"] for row in rows]


def test_a_round_that_another_process_resumed_has_the_same_receipts_and_a_proof_of_its_own(two_rounds, vllm_engine,
                                                                                           tmp_path):
    whole = two_rounds[0][0]
    shutil.copytree(whole.store.url, tmp_path / "store", ignore=shutil.ignore_patterns("round=*"))
    context = open_context(str(tmp_path / "store"), whole.run, 0)
    stages.plan(context)
    for shard in (0, 1):
        stages.run_shard(context, "prompts", shard)
    stages.run_shard(context, "rollout", 1)
    vllm_engine(local_checkpoint(whole.store, starting_checkpoint(whole.store, whole.run, 1)))
    stages.run_shard(context, "rollout", 0)  # proved anew, on this shard's rollouts, after a reload
    for shard in (0, 1):
        facts = context.round.receipt("rollout", shard).facts
        assert facts == whole.round.receipt("rollout", shard).facts
        assert set(facts) == {"rollouts", "response_tokens", "truncated", "graded", "right"}
    first, second = proofs_of(context)
    assert first != second and "moved" in first


def test_log_probs_are_those_of_the_checkpoint_that_starts_each_round(two_rounds):
    import torch

    for context in two_rounds[0]:
        start = starting_checkpoint(context.store, context.run, context.number)
        model = load_model(local_checkpoint(context.store, start))
        for row in context.round.read("rollout").slice(0, 4).to_pylist():
            assert row["engine"].startswith("vllm 0.32.0 (cpu), torch ")
            assert row["policy_version"] == start.fingerprint
            ids = torch.tensor([row["prompt_tokens"] + row["response_tokens"]])
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits[0, len(row["prompt_tokens"]) - 1:-1, :259]
            dense = logits.log_softmax(-1)[range(len(row["response_tokens"])), row["response_tokens"]]
            np.testing.assert_allclose(row["rollout_log_probs"], dense, atol=1e-5)


def test_scores_agree_with_the_engine(two_rounds):
    for context in two_rounds[0]:
        scores = context.round.read("score")
        difference = scores["student_log_prob"].to_numpy() - scores["rollout_log_prob"].to_numpy()
        assert len(difference) > 100 and np.abs(difference).mean() < 1e-5


def test_a_stage_with_an_engine_that_kept_the_old_weights_writes_nothing(two_rounds, vllm_engine):
    context, start = _next_round(two_rounds[0][1])
    old, new = Path(context.config.student.path), local_checkpoint(context.store, start)
    vllm_engine(old)
    engine = vllm_engine(new)
    engine._call("reload", {"folder": str(old)}, engine._everywhere())  # behind its back: the reload did not happen
    with pytest.raises(EngineFailed, match="does not have the weights in"):
        stages.run_shard(context, "rollout", 0)
    assert context.round.receipt("rollout", 0) is None and not engine.alive


def _play(context):
    stages.plan(context)
    for stage in STAGES:
        for shard in context.round.pending(stage):
            stages.run_shard(context, stage, shard)
    stages.commit_round(context.round)


def _next_round(last):
    context = open_context(last.store.url, last.run, 2)
    stages.plan(context)
    stages.run_shard(context, "prompts", 0)
    return context, starting_checkpoint(context.store, context.run, 2)
