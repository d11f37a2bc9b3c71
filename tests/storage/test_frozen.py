"""The public surface of a store, written out: columns of every table, keys of every document.

A failing test here means that stores of the released version would be read otherwise: raise a format's version and say
how old stores are read, then change the test.
"""

import json

import pyarrow as pa
import pytest

from storage import layout, schemas
from storage.records import FORMAT

COLUMNS = {
    "prompts": [
        ("prompt_id", "int64", "required"),
        ("task", "string", "required"),
        ("data_source", "string", "required"),
        ("source_row", "int64", "required"),
        ("messages", "string", "required"),
        ("ground_truth", "string", "optional"),
        ("solution", "string", "optional"),
        ("prompt_tokens", "list<item: int32 not null>", "required"),
    ],
    "rollouts": [
        ("rollout_id", "int64", "required"),
        ("prompt_id", "int64", "required"),
        ("sample", "int32", "required"),
        ("task", "string", "required"),
        ("data_source", "string", "required"),
        ("messages", "string", "required"),
        ("ground_truth", "string", "optional"),
        ("prompt_tokens", "list<item: int32 not null>", "required"),
        ("response_tokens", "list<item: int32 not null>", "required"),
        ("response_text", "string", "required"),
        ("finish_reason", "string", "required"),
        ("turns", "list<item: struct<start: int32 not null, end: int32 not null>>", "required"),
        ("reward", "float", "optional"),
        ("policy_version", "string", "required"),
        ("engine", "string", "required"),
        ("sampling", "struct<temperature: float, top_p: float, max_new_tokens: int32>", "required"),
        ("seed", "int64", "required"),
        ("token_hash", "string", "required"),
        ("rollout_log_probs", "list<item: float not null>", "required"),
        ("sampling_log_probs", "list<item: float not null>", "required"),
    ],
    "tokens": [
        ("rollout_id", "int64", "required"),
        ("prompt_id", "int64", "required"),
        ("task", "string", "required"),
        ("position", "int32", "required"),
        ("token_id", "int32", "required"),
        ("rollout_log_prob", "float", "required"),
        ("sampling_log_prob", "float", "required"),
        ("student_log_prob", "float", "required"),
        ("student_entropy", "float", "required"),
        ("teacher_log_prob", "float", "required"),
        ("teacher_rank", "int32", "required"),
        ("teacher_entropy", "float", "required"),
        ("teacher_log_tail", "float", "required"),
        ("student_log_tail", "float", "required"),
        ("teacher_topk_ids", "fixed_size_list<item: int32 not null>[4]", "required"),
        ("teacher_topk_log_probs", "fixed_size_list<item: float not null>[4]", "required"),
        ("student_topk_ids", "fixed_size_list<item: int32 not null>[2]", "required"),
        ("student_topk_log_probs", "fixed_size_list<item: float not null>[2]", "required"),
        ("teacher_log_probs_at_student_topk", "fixed_size_list<item: float not null>[2]", "required"),
        ("student_log_probs_at_teacher_topk", "fixed_size_list<item: float not null>[4]", "required"),
        ("reused_from", "string", "optional"),
    ],
    "mask": [
        ("rollout_id", "int64", "required"),
        ("position", "int32", "required"),
        ("weight", "float", "required"),
        ("reasons", "list<item: string>", "required"),
    ],
    "steps": [
        ("step", "int64", "required"),
        ("step_in_round", "int32", "required"),
        ("loss", "double", "required"),
        ("learning_rate", "double", "required"),
        ("grad_norm", "double", "required"),
        ("rollouts", "int32", "required"),
        ("tokens", "int64", "required"),
        ("unmasked_tokens", "int64", "required"),
        ("staleness", "int32", "required"),
        ("stopped", "string", "optional"),
        ("drift", "double", "optional"),
        ("ess", "double", "optional"),
        ("student_mass", "double", "optional"),
        ("opd_reverse_kl", "double", "optional"),
        ("teacher_kl", "double", "optional"),
        ("student_entropy", "double", "optional"),
        ("topk_left", "double", "optional"),
        ("probe_tokens", "int32", "required"),
    ],
    "hidden": [
        ("rollout_id", "int64", "required"),
        ("position", "int32", "required"),
        ("scale", "float", "required"),
        ("hidden", "fixed_size_binary[8]", "required"),
    ],
    "continuation": [
        ("rollout_id", "int64", "required"),
        ("prompt_id", "int64", "required"),
        ("task", "string", "required"),
        ("depth", "int32", "required"),
        ("role", "string", "required"),
        ("sample", "int32", "required"),
        ("model", "string", "required"),
        ("response_text", "string", "required"),
        ("response_tokens", "int32", "required"),
        ("finish_reason", "string", "required"),
        ("correct", "bool", "required"),
        ("verdict_reason", "string", "required"),
        ("prefix_correct", "bool", "required"),
        ("seed", "int64", "required"),
    ],
    "evaluation": [
        ("prompt_id", "int64", "required"),
        ("sample", "int32", "required"),
        ("task", "string", "required"),
        ("data_source", "string", "required"),
        ("messages", "string", "required"),
        ("model", "string", "required"),
        ("role", "string", "required"),
        ("response_text", "string", "required"),
        ("response_tokens", "int32", "required"),
        ("finish_reason", "string", "required"),
        ("answer", "string", "optional"),
        ("ground_truth", "string", "required"),
        ("correct", "bool", "required"),
        ("verdict_reason", "string", "required"),
        ("seed", "int64", "required"),
    ],
}
SEALED = {"checksum", "format", "kind", "round", "run"}
CHECKPOINT = {"files", "fingerprint", "prefix"}
STORED_FILE = {"key", "sha256", "size"}
SHARD_FILE = {"key", "rows", "sha256", "size", "table"}
PLAN = SEALED | {"checkpoint", "continuation", "evaluation", "facts", "hidden", "parent", "seed", "shards"}
PLAN_SHARD = {"index", "prompt_ids", "rollout_seeds"}
EVALUATION_SHARD = {"benchmark", "index", "prompt_ids", "role"}
CONTINUATION_SHARD = {"index", "prompt_ids", "role"}
RECEIPT = SEALED | {"checkpoint", "facts", "file", "head", "inputs", "shard", "stage"}
STAGE_COMMIT = SEALED | {"facts", "receipts", "stage"}
MANIFEST = SEALED | {"checkpoint_in", "checkpoint_out", "files", "parent", "plan", "run_json", "stages"}


def columns(schema: pa.Schema) -> list[tuple[str, str, str]]:
    return [(field.name, str(field.type), "optional" if field.nullable else "required") for field in schema]


def read(store, key: str) -> dict:
    return json.loads(store.get(key))


@pytest.mark.parametrize("table", COLUMNS)
def test_every_table_has_these_columns(table):
    wide = schemas.tokens(schemas.TopK(teacher=4, student=2, student_at_teacher=True))
    assert columns({**schemas.FIXED_TABLES, "tokens": wide, "hidden": schemas.hidden(8)}[table]) == COLUMNS[table]

def test_there_are_no_other_tables_and_one_column_is_left_out_unless_it_is_asked_for():
    assert {*schemas.FIXED_TABLES, "tokens", "hidden"} == COLUMNS.keys()
    narrow = columns(schemas.tokens(schemas.TopK(teacher=4, student=2)))
    assert narrow == [column for column in COLUMNS["tokens"] if column[0] != "student_log_probs_at_teacher_topk"]


def test_the_stages_and_the_format_are_these():
    assert layout.STAGES == ("prompts", "rollout", "score", "hidden", "continuation", "mask", "train", "evaluate")
    assert FORMAT == 3


def test_every_document_of_a_round_has_these_keys(two_rounds):
    plan = read(two_rounds, "run=r/round=1/plan.json")
    assert plan.keys() == PLAN and all(shard.keys() == PLAN_SHARD for shard in plan["shards"])
    assert all(shard.keys() == EVALUATION_SHARD for shard in plan["evaluation"])
    assert all(shard.keys() == CONTINUATION_SHARD for shard in plan["continuation"])
    for stage in layout.STAGES:
        receipt = read(two_rounds, f"run=r/round=1/receipts/{stage}-0.json")
        assert receipt.keys() == RECEIPT and receipt["file"].keys() == SHARD_FILE
        assert (receipt["checkpoint"] or {}).keys() == (CHECKPOINT if stage == "train" else set())
        assert (receipt["head"] or {}).keys() == (CHECKPOINT if stage == "hidden" else set())
        assert read(two_rounds, f"run=r/round=1/{stage}.json").keys() == STAGE_COMMIT
    manifest = read(two_rounds, "run=r/round=1/manifest.json")
    assert manifest.keys() == MANIFEST and manifest["stages"].keys() == set(layout.STAGES)
    assert all(file.keys() == SHARD_FILE for file in manifest["files"])
    for name in ("checkpoint_in", "checkpoint_out"):
        assert manifest[name].keys() == CHECKPOINT
        assert all(file.keys() == STORED_FILE for file in manifest[name]["files"])
    assert read(two_rounds, "store.json").keys() == {"checksum", "format", "kind"}
