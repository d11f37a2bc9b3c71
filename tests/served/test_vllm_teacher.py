"""The teacher in a vLLM process of this machine, against our scorer on the same weights."""

import os

import numpy as np
import pytest

from pipeline import stages
from pipeline.models import load_model
from pipeline.score.by_vllm import offline as vllm_teacher
from pipeline.score.by_vllm.offline import open_teacher
from pipeline.score.by_vllm.unknown import known
from pipeline.score.scorer import score_rollouts
from pipeline.vllm.start import EngineFailed
from storage.errors import UserError
from tests.served.conftest import begin

pytestmark = pytest.mark.timeout(400)
SETTINGS = ("score.engine.type=vllm", "score.engine.cpu_kv_cache_gb=0.25", "score.engine.max_model_len=256",
            "score.teacher_top_k=12", "score.student_top_k=8")


@pytest.fixture(scope="module")
def teachers() -> list:
    """The teacher that was kept after each shard."""
    return []


@pytest.fixture(scope="module")
def scored(tmp_path_factory, teachers):
    """A round of which two shards were scored by one vLLM process, which is still there."""
    pytest.importorskip("vllm")
    context = begin(tmp_path_factory.mktemp("run"), None, *SETTINGS, padded=3)
    for shard in range(2):
        stages.run_shard(context, "rollout", shard)
        stages.run_shard(context, "score", shard)
        teachers.append(vllm_teacher._opened.teacher)
    yield context
    vllm_teacher.close()


def test_the_teachers_columns_are_those_of_our_scorer_over_the_shared_ids(scored):
    teacher = load_model(scored.config.teacher)
    student = load_model(scored.config.student)
    own = score_rollouts(scored.round.read("rollout", 0), student, teacher, scored.document["vocabulary"]["shared"],
                         scored.config.score)
    theirs = scored.round.read("score", 0)
    assert scored.document["teacher"]["vocab_size"] == scored.document["vocabulary"]["shared"] + 3
    # what three padded rows carry is missing where they are not listed: less than 1e-3 of probability
    assert np.abs(known(theirs["teacher_log_prob"]) - known(own["teacher_log_prob"])).max() < 2e-3
    assert (known(theirs["teacher_topk_ids"]) == known(own["teacher_topk_ids"])).mean() > 0.999
    assert np.abs(known(theirs["teacher_topk_log_probs"]) - known(own["teacher_topk_log_probs"])).max() <= 1 / 32
    assert np.abs(known(theirs["teacher_rank"]) - known(own["teacher_rank"])).max() <= 3
    assert theirs["teacher_entropy"].null_count == theirs.num_rows


def test_one_process_reads_all_shards_and_a_second_reading_agrees(scored, teachers):
    assert teachers[0] is teachers[1] and teachers[0].alive
    assert teachers[0].ready["prefix_caching"] is False, "a prefix that is cached has no prompt_logprobs"
    for shard in range(2):
        facts = scored.round.receipt("score", shard).facts
        assert facts["order_tokens"] > 0 and facts["order_log_prob_difference"] < 1e-4
        assert facts["unlisted_mass"] < 1e-3


def test_a_rollout_longer_than_the_window_is_one_line(scored):
    with pytest.raises(UserError, match="score.engine.max_model_len"):
        open_teacher(scored).prompt_log_probs([[3] * 256], [1], 4, lambda done: None)


def test_a_run_that_began_with_another_vllm_is_refused(scored):
    facts = scored.document["teacher"]
    began = scored.document | {"teacher": facts | {"scored_by": {"engine": "vllm", "version": "0.31.0"}}}
    context = type(scored)(scored.store, scored.run, 0, scored.config, began, scored.round)
    with pytest.raises(UserError, match="began in vLLM 0.31.0, here is 0.32"):
        open_teacher(context)


def test_without_vllm_the_teacher_is_refused_before_the_run_begins(monkeypatch, tmp_path):
    monkeypatch.setattr("pipeline.vllm.checks.installed", lambda: None)
    with pytest.raises(UserError, match="needs vLLM, which is not installed"):
        begin(tmp_path, None, *SETTINGS)
    assert not (tmp_path / "store").exists()
    monkeypatch.setattr("pipeline.vllm.checks.installed", lambda: "0.24.1")
    with pytest.raises(UserError, match="works with vLLM 0.32, here is 0.24.1"):
        begin(tmp_path, None, *SETTINGS)


def test_a_process_that_was_killed_is_one_line_and_leaves_nothing_behind(scored):
    teacher = open_teacher(scored)
    os.kill(teacher.process.pid, 9)
    with pytest.raises(EngineFailed, match="process died .*run the same command again"):
        teacher.prompt_log_probs([[3, 4, 5]], [1], 4, lambda done: None)
    assert not teacher.process.alive
    with pytest.raises(ProcessLookupError):
        os.kill(teacher.process.pid, 0)
