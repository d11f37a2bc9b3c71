"""What is refused before a run begins: columns that a vLLM teacher does not give, and what a server cannot do."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import RunConfig, apply_settings
from pipeline.config.objectives import SECTIONS
from pipeline.config.partial import check_masks_partial, check_partial_teacher, check_server_engine, needed_column
from pipeline.score.by_vllm.columns import RESOLUTION, Listed, teacher_columns
from pipeline.score.by_vllm.unknown import STAND_IN, as_null, known, stand_in
from pipeline.train.reader import BATCH_COLUMNS
from storage import schemas
from storage.codec import columns_to_torch, decode, encode
from storage.errors import UserError
from storage.shards import expected_schema
from tests.made_rounds import tokens

SERVED = ["score.engine.type=vllm_server", "score.engine.url=http://h:1", "score.engine.model=m"]
ROLLED = ["rollout.engine.type=vllm_server", "rollout.engine.url=http://h:1", "rollout.engine.model=m"]
BENCHMARK = {"benchmark": [{"name": "sums", "source": {"type": "file", "path": "p.jsonl"}}]}


def config(*settings, **sections):
    document = {"run": "r", "student": {"path": "s"}, "teacher": {"path": "t"},
                "prompts": {"source": {"type": "file", "path": "p.jsonl"}}} | sections
    return RunConfig.model_validate(apply_settings(document, list(settings)))


@pytest.mark.parametrize(("objective", "column"), [
    ("tail_bucket_topk", "teacher_log_tail"), ("forward_kl_topk", "teacher_log_tail"), ("gkd", "teacher_log_tail"),
    ("skewed_topk", "teacher_log_tail"), ("student_topk", "teacher_log_probs_at_student_topk"),
    ("union_topk", "teacher_log_probs_at_student_topk"), ("non_overlap_only", "teacher_log_probs_at_student_topk")])
def test_an_objective_over_an_unknown_column_is_refused(objective, column):
    with pytest.raises(ValueError, match=f"{objective}.*{column}"):
        check_partial_teacher(config(*SERVED, f"objective.type={objective}"))


@pytest.mark.parametrize("objective", ["teacher_topk_lsm", "overlap_only", "sampled_token", "lightning",
                                       "stop_gradient_topk", "truncated_topk"])
def test_an_objective_over_known_columns_passes(objective):
    check_partial_teacher(config(*SERVED, f"objective.type={objective}"))


def test_every_objective_is_either_known_to_pass_or_named_as_refused():
    passing = {section.model_fields["type"].default for section in SECTIONS
               if needed_column(section.model_construct(type=section.model_fields["type"].default)) is None}
    assert passing == {"teacher_topk_lsm", "overlap_only", "stop_gradient_topk", "truncated_topk", "full_vocabulary",
                       "sampled_token", "sampled_token_masked", "lightning", "dense"}


@pytest.mark.parametrize("settings", [
    ["objective.type=dense", "objective.support=union"], ["objective.type=dense", "objective.outside=tail_bucket"],
    ["objective.type=sampled_token", "objective.baseline=kl"], ["objective.type=custom", "objective.factory=a:b"],
    ["objective.type=full_vocabulary", "objective.teacher=live"], ["score.teacher_hidden_states=bfloat16"]])
def test_options_that_need_more_than_a_served_teacher_says_are_refused(settings):
    with pytest.raises(ValueError, match="score.engine.type = 'vllm_server'"):
        check_partial_teacher(config(*SERVED, *settings))


def test_a_teacher_in_local_vllm_still_has_its_weights():
    check_partial_teacher(config("score.engine.type=vllm", "score.teacher_hidden_states=bfloat16",
                                 "objective.type=full_vocabulary"))


@pytest.mark.parametrize(("settings", "sections"), [
    (["evaluation.teacher=true"], {"evaluation": BENCHMARK}), (["evaluation.teacher=false"], {"evaluation": BENCHMARK}),
    ([], {"continuation": {}}), (["rollout.temperature=0.005"], {})])
def test_a_rollout_server_is_not_asked_for_what_it_cannot_do(settings, sections):
    with pytest.raises(ValueError, match="vllm_server|server"):
        check_server_engine(config(*ROLLED, *settings, **sections))


def test_a_rollout_server_that_is_reloaded_can_grade_the_student():
    check_server_engine(config(*ROLLED, "rollout.engine.reload=rpc", "evaluation.teacher=false", evaluation=BENCHMARK))


def test_a_mask_over_an_unknown_column_is_refused_and_one_that_mentions_it_in_a_comment_is_not():
    served = config(*SERVED)
    check_masks_partial(served, {"a.sql": "-- not teacher_entropy\nSELECT teacher_log_prob FROM tokens"})
    for text in ("SELECT Teacher_Entropy FROM tokens", "SELECT teacher_mass FROM tokens"):
        with pytest.raises(UserError, match="mask a.sql reads teacher_"):
            check_masks_partial(served, {"a.sql": text})
    check_masks_partial(config(), {"a.sql": "SELECT teacher_entropy FROM tokens"})


@pytest.mark.parametrize("path", ["/models/student", "{nothing}/x", ""])
def test_a_checkpoint_path_that_names_one_folder_for_all_rounds_is_refused(path):
    with pytest.raises(ValueError, match="checkpoint_path"):
        config(*ROLLED, f"rollout.engine.checkpoint_path={path}")


def listed_from(log_q_NV: np.ndarray, token_N: np.ndarray, entries: int) -> Listed:
    """What vLLM would say of tokens under known distributions."""
    ids_NJ = np.argsort(-log_q_NV, axis=1, kind="stable")[:, :entries]
    own_N1 = np.take_along_axis(log_q_NV, token_N[:, None], 1)
    return Listed(own_N1[:, 0], (log_q_NV >= own_N1).sum(1), ids_NJ, np.take_along_axis(log_q_NV, ids_NJ, 1))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


@pytest.mark.parametrize("unshared", [0, 3])
def test_columns_are_those_of_the_distribution_over_the_shared_ids(unshared):
    generator, shared, k = np.random.default_rng(0), 50, 8
    settings = config("score.teacher_top_k=8").score
    head_NV = log_softmax(generator.normal(size=(200, shared + unshared)) * 3)
    token_N = generator.integers(0, shared, 200)
    columns = teacher_columns(listed_from(head_NV, token_N, shared + unshared), token_N, shared, settings, "it")
    log_q_NV = log_softmax(head_NV[:, :shared])
    ids_NK = np.argsort(-log_q_NV, axis=1, kind="stable")[:, :k]
    assert np.array_equal(columns["teacher_topk_ids"], ids_NK)
    assert np.abs(columns["teacher_log_prob"] - log_q_NV[np.arange(200), token_N]).max() < 1e-6
    assert np.array_equal(columns["teacher_rank"], 1 + (log_q_NV > log_q_NV[np.arange(200), token_N][:, None]).sum(1))
    tail_N = 1 - np.exp(np.take_along_axis(log_q_NV, ids_NK, 1)).sum(1)
    sound_N = tail_N > RESOLUTION
    assert np.array_equal(np.isnan(columns["teacher_log_tail"]), ~sound_N)
    assert np.abs(columns["teacher_log_tail"][sound_N] - np.log(tail_N[sound_N])).max() < 1e-5
    assert np.isnan(columns["teacher_entropy"]).all()


def test_a_list_over_the_whole_vocabulary_has_no_tail():
    log_q_NV = log_softmax(np.random.default_rng(1).normal(size=(4, 8)))
    settings = config("score.teacher_top_k=8", "score.student_top_k=4").score
    columns = teacher_columns(listed_from(log_q_NV, np.zeros(4, int), 8), np.zeros(4, int), 8, settings, "it")
    assert np.isneginf(columns["teacher_log_tail"]).all()


@pytest.mark.parametrize(("damage", "words"), [
    ({"log_probs_NJ": lambda x: x + 5}, "together"), ({"ids_NJ": lambda x: x * 0}, "twice")])
def test_lists_that_are_no_distribution_are_refused(damage, words):
    log_q_NV = log_softmax(np.random.default_rng(1).normal(size=(4, 8)))
    good = listed_from(log_q_NV, np.zeros(4, int), 8)
    bad = Listed(*(damage.get(name, lambda x: x)(getattr(good, name)) for name in Listed.__dataclass_fields__))
    with pytest.raises(UserError, match=words):
        teacher_columns(bad, np.zeros(4, int), 8, config("score.teacher_top_k=8").score, "it")


def test_more_foreign_ids_than_were_asked_for_in_reserve_are_refused():
    log_q_NV = log_softmax(np.random.default_rng(1).normal(size=(4, 40)))
    with pytest.raises(UserError, match="ids that the student does not have"):
        teacher_columns(listed_from(log_q_NV, np.zeros(4, int), 9), np.zeros(4, int), 8,
                        config("score.teacher_top_k=8").score, "it")


def partial_table() -> pa.Table:
    """Two rows with everything unknown that may be."""
    table = tokens({0: [5, 6]})
    for name in schemas.UNKNOWN_TO_VLLM:
        index, column = table.schema.get_field_index(name), table[name].combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            values = np.full(len(column) * column.type.list_size, -1.0, np.float32)
            values[1::2] = np.nan
            column = pa.FixedSizeListArray.from_arrays(pa.array(values), type=column.type)
        else:
            column = pa.array(np.full(len(column), np.nan, np.float32))
        table = table.set_column(index, table.schema.field(name), column)
    return as_null(table)


def test_what_is_unknown_is_null_on_disk_and_comes_back_as_such():
    table = partial_table()
    schema = expected_schema("tokens", table.schema)
    back = decode(encode(table), schema)
    assert back.schema.equals(schema) and back.equals(table)
    assert back["teacher_entropy"].null_count == 2 and back["teacher_log_prob"].null_count == 0
    at_student = known(back["teacher_log_probs_at_student_topk"])
    assert np.isnan(at_student[:, 1::2]).all() and (at_student[:, ::2] == -1).all()


def test_a_table_of_a_whole_teacher_has_no_nullable_score():
    schema = schemas.tokens(schemas.TopK(4, 2))
    assert not any(schema.field(name).nullable for name in schemas.UNKNOWN_TO_VLLM)
    assert expected_schema("tokens", schema).equals(schema)


def test_the_trainer_reads_a_stand_in_where_nothing_is_known():
    columns = columns_to_torch(stand_in(partial_table()), BATCH_COLUMNS.values())
    assert np.allclose(columns["teacher_log_tail"], STAND_IN)
    assert np.allclose(columns["teacher_log_probs_at_student_topk"][:, 1::2], STAND_IN)
