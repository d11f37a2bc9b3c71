"""A real vLLM server as the teacher, against our scorer on the same weights; and servers that are not it, or die."""

import numpy as np
import pytest
import torch

from flows.order import play_round
from pipeline import stages
from pipeline.models import load_model
from pipeline.score.by_vllm.server import ServedTeacher, open_server
from pipeline.score.by_vllm.unknown import known
from pipeline.score.key import teacher_key
from pipeline.score.scorer import score_rollouts
from pipeline.train.reader import read_round
from storage.errors import UserError
from tests.served.conftest import KEY_ENV, MAX_LOGPROBS, NAME, begin
from tests.served.raw_server import relaying

pytestmark = pytest.mark.timeout(400)
K, STUDENT_K = 12, 8


def served(url, *settings):
    return ("score.engine.type=vllm_server", f"score.engine.url={url}", f"score.engine.model={NAME}",
            f"score.engine.api_key_env={KEY_ENV}", "score.engine.retries=1", f"score.teacher_top_k={K}",
            f"score.student_top_k={STUDENT_K}", *settings)


def with_rollouts(context):
    """The same context with all rollouts of the round."""
    for shard in range(4):
        stages.run_shard(context, "rollout", shard)
    return context


@pytest.fixture(scope="module")
def scored(vllm_server, tmp_path_factory):
    """A round whose shards the server has scored; the teacher's folder has no weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_ENV, "sesame")
        vllm_server.hold("teacher")
        context = with_rollouts(begin(tmp_path_factory.mktemp("run"), vllm_server, *served(vllm_server.url),
                                      weightless=True))
        for shard in range(4):
            stages.run_shard(context, "score", shard)
    return context


@pytest.fixture(scope="module")
def both(scored, vllm_server):
    """(the server's scores, our scorer's) of every rollout."""
    student, teacher = (load_model(vllm_server.models[name]) for name in ("student", "teacher"))
    rollouts = scored.round.read("rollout")
    own = score_rollouts(rollouts, student, teacher, scored.document["vocabulary"]["shared"], scored.config.score)
    keys = [("prompt_id", "ascending"), ("rollout_id", "ascending"), ("position", "ascending")]
    return scored.round.read("score").sort_by(keys), own.sort_by(keys)


def test_the_teachers_columns_are_those_of_our_scorer(both):
    theirs, own = both
    assert theirs["token_id"].equals(own["token_id"])
    assert np.abs(known(theirs["teacher_log_prob"]) - known(own["teacher_log_prob"])).max() < 1e-4
    assert (known(theirs["teacher_rank"]) == known(own["teacher_rank"])).mean() > 0.99
    assert (known(theirs["teacher_topk_ids"]) == known(own["teacher_topk_ids"])).mean() > 0.999
    differ = known(theirs["teacher_topk_log_probs"]) != known(own["teacher_topk_log_probs"])
    assert differ.mean() < 1e-3  # log-probs at the border of two steps of the grid
    assert np.abs(known(theirs["teacher_log_tail"]) - known(own["teacher_log_tail"])).max() < 1e-3


def test_tokens_outside_the_list_were_among_them(both):
    ranks = known(both[0]["teacher_rank"])
    assert (ranks > K).any() and (ranks <= K).any()  # K + 1 entries, and K


def test_what_a_served_teacher_does_not_say_is_null(both):
    theirs, own = both
    assert theirs["teacher_entropy"].null_count == theirs.num_rows
    at_student, whole = (known(each["teacher_log_probs_at_student_topk"]) for each in both)
    listed = (known(own["student_topk_ids"])[:, :, None] == known(own["teacher_topk_ids"])[:, None, :]).any(2)
    assert np.array_equal(np.isnan(at_student), ~listed) and listed.any() and not listed.all()
    assert np.abs(at_student[listed] - whole[listed]).max() <= 1 / 32


def test_the_students_columns_are_our_scorers(both):
    theirs, own = both
    for name in ("student_log_prob", "student_entropy", "student_log_tail", "student_topk_log_probs"):
        assert np.abs(known(theirs[name]) - known(own[name])).max() <= (1 / 32 if "topk" in name else 1e-4)


def test_the_receipt_holds_what_a_second_reading_found(scored):
    facts = scored.round.receipt("score", 0).facts
    assert facts["order_tokens"] > 0 and facts["order_log_prob_difference"] < 1e-4


def test_the_trainer_reads_such_scores(scored):
    for shard in range(4):
        stages.run_shard(scored, "mask", shard)
    data = read_round(scored.round, scored.round.plan().checkpoint)
    assert not any(column.isnan().any() for column in data.columns.values() if column.is_floating_point())


def test_run_json_says_which_teacher_it_is_and_the_key_covers_it(scored):
    facts = scored.document["teacher"]
    assert facts["fingerprint"] == f"served:{NAME}" and facts["scored_by"]["version"] == "0.32.0"
    key = teacher_key(scored.document, scored.config)
    for other in ({"version": "0.33.0"}, {"model": "other"}, {"canary": [-1.0]}):
        changed = facts | {"scored_by": facts["scored_by"] | other}
        assert teacher_key(scored.document | {"teacher": changed}, scored.config) != key
    elsewhere = scored.config.score.engine.model_copy(update={"url": "http://elsewhere:1"})
    score = scored.config.score.model_copy(update={"engine": elsewhere})
    assert teacher_key(scored.document, scored.config.model_copy(update={"score": score})) == key


def test_a_server_that_has_another_teacher_by_now_is_refused(scored, vllm_server):
    vllm_server.hold("student")
    with pytest.raises(UserError, match="serves another teacher than this run began with"):
        open_server(scored.config.score.engine, scored.document["teacher"], "float32")
    vllm_server.hold("teacher")
    open_server(scored.config.score.engine, scored.document["teacher"], "float32")


def test_a_list_longer_than_the_server_gives_says_which_flag_to_raise(vllm_server, tmp_path):
    vllm_server.hold("teacher")
    with pytest.raises(UserError, match="larger --max-logprobs"):
        begin(tmp_path, vllm_server, *served(vllm_server.url), f"score.teacher_top_k={MAX_LOGPROBS + 1}",
              weightless=True)
    assert not (tmp_path / "store").exists(), "before a rollout was drawn"


def test_log_probs_of_more_ids_than_vllm_takes_at_once_are_those_of_the_model(scored, vllm_server):
    vllm_server.hold("teacher")
    asking, ids = ServedTeacher(scored.config.score.engine), list(range(259))
    found = asking.log_probs_after([[40, 41, 42], [50, 51]], ids, entries=136)
    model = load_model(vllm_server.models["teacher"])
    with torch.no_grad():
        expected = [model(torch.tensor([prefix])).logits[0, -1].log_softmax(-1) for prefix in ([40, 41, 42], [50, 51])]
    np.testing.assert_allclose(found, torch.stack(expected), atol=1e-4)


def test_a_rollout_longer_than_the_servers_window_is_one_line(scored, vllm_server):
    with pytest.raises(UserError, match="takes 512 tokens, .* 512, and one behind, need 513.*--max-model-len 513"):
        ServedTeacher(scored.config.score.engine).prompt_log_probs([[3] * 512], [1], 4, lambda done: None)


def test_a_run_does_not_begin_without_its_server_or_with_a_wrong_name(vllm_server, tmp_path):
    for change, words in (("score.engine.url=http://127.0.0.1:9", "does not answer"),
                          ("score.engine.model=other", "does not serve")):
        with pytest.raises(UserError, match=words):
            begin(tmp_path, vllm_server, *served(vllm_server.url), change, "score.engine.retries=0")
        assert not (tmp_path / "store").exists()


def test_a_server_that_dies_half_way_leaves_finished_shards_and_the_same_command_goes_on(vllm_server, tmp_path):
    vllm_server.hold("teacher")
    with relaying(vllm_server.port, 14) as (url, dead, revive):
        context = with_rollouts(begin(tmp_path, vllm_server, *served(url), weightless=True))
        finished = []
        with pytest.raises(UserError, match="teacher server.*does not answer.*asked 2 times.*same command goes on"):
            for shard in range(4):
                stages.run_shard(context, "score", shard)
                finished.append(shard)
        assert dead.is_set() and 0 < len(finished) < 4
        assert [receipt.shard for receipt in context.round.receipts("score")] == finished
        before = context.round.read("score", 0)
        revive()
        for shard in range(4):
            stages.run_shard(context, "score", shard)
    assert context.round.read("score", 0).equals(before)


def test_a_whole_round_is_learnt_from_and_its_payloads_are_used_again(vllm_server, tmp_path):
    vllm_server.hold("teacher")

    def play(pending):
        for stage, shards in pending.items():
            for shard in shards:
                stages.run_shard(context, stage, shard)

    context = begin(tmp_path, vllm_server, *served(vllm_server.url), weightless=True)
    play_round(context.round, lambda: None, play)
    assert context.round.read("train")["loss"].null_count == 0
    again = with_rollouts(begin(tmp_path, vllm_server, *served(vllm_server.url), "run=again", "score.reuse=true",
                                weightless=True))
    facts = stages.run_shard(again, "score", 0).facts
    assert facts["reused"] == 4 and facts["scored"] == 0 and "order_tokens" not in facts
    first, second = (each.round.read("score", 0).drop_columns("reused_from") for each in (context, again))
    assert first.drop_columns("rollout_id").equals(second.drop_columns("rollout_id"))
