"""From rows to the pool: messages, chat template, ids, filters."""

import json
import os
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.config.model import FileSource, Prompts
from pipeline.prompts.pool import build_pool, check_pool, read_prompts, rebuild_pool
from pipeline.prompts.templates import as_json, encode, messages_of
from storage.errors import UserError
from tests.tiny import byte_tokenizer, make_tiny

TOKENIZER = byte_tokenizer()


def prompts_of(file: Path, rows: list[dict], **changes) -> Prompts:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Prompts(source=FileSource(path=str(file)), **{"per_round": 1, **changes})


def sums(count: int) -> list[dict]:
    return [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(count)]


def one_line(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_messages_are_system_and_user_with_the_question_in_its_template(tmp_path):
    prompts = prompts_of(tmp_path / "a.jsonl", [], template="Solve {question} {now}", system="Be {brief}.")
    assert messages_of("1 + {1}?", prompts, "") == [{"role": "system", "content": "Be {brief}."},
                                                    {"role": "user", "content": "Solve 1 + {1}? {now}"}]


def test_a_chat_keeps_its_messages_and_its_own_system_message(tmp_path):
    prompts = prompts_of(tmp_path / "a.jsonl", [], template=">{question}", system="Be brief.")
    chat = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "A"},
            {"role": "assistant", "content": "B"}, {"role": "user", "content": "C", "name": "dropped"}]
    assert messages_of(chat, prompts, "") == [*chat[:3], {"role": "user", "content": ">C"}]
    assert messages_of(chat[1:], prompts, "")[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("question, said", [
    (7, "neither a text nor a list"), ([{"role": "user"}], "neither a text nor a list"),
    ([{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}], "ends with the role 'assistant'")])
def test_a_question_that_is_no_question_is_refused_by_row(tmp_path, question, said):
    prompts = prompts_of(tmp_path / "a.jsonl", [{"question": question, "answer": "1"}])
    message = one_line(lambda: build_pool(prompts, TOKENIZER))
    assert said in message and "a: row 0" in message


def test_a_template_without_the_question_is_refused(tmp_path):
    prompts = prompts_of(tmp_path / "a.jsonl", sums(2), template="Solve it.")
    assert "prompts.template has no {question}" in one_line(lambda: build_pool(prompts, TOKENIZER))


def test_prompt_tokens_are_the_chat_template_up_to_the_assistants_turn():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    expected = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert encode([as_json(messages)], TOKENIZER) == [list(expected)]


def test_a_tokenizer_without_a_chat_template_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    assert "has no chat template" in one_line(lambda: encode([as_json([{"role": "user", "content": "?"}])], tokenizer))


def test_a_chat_template_that_refuses_a_role_says_so_in_one_line():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "?"}]
    said = one_line(lambda: encode([as_json(messages)], tokenizer))
    assert "refuses a prompt with the roles system, user: System role not supported" in said


def test_ids_hash_the_content_and_not_the_place(tmp_path):
    first, _ = read_prompts(prompts_of(tmp_path / "a.jsonl", sums(5)))
    (tmp_path / "other").mkdir()
    again, _ = read_prompts(prompts_of(tmp_path / "other" / "a.jsonl", sums(5)[::-1]))
    assert sorted(first) == sorted(again)
    for changes in ({"task": "other"}, {"template": "Q: {question}"}, {"system": "Be brief."}):
        other, _ = read_prompts(prompts_of(tmp_path / "a.jsonl", sums(5), **changes))
        assert not set(first) & set(other)
    wrong = [{**row, "answer": "#### 1000"} for row in sums(5)]
    (tmp_path / "wrong").mkdir()
    assert not set(first) & set(read_prompts(prompts_of(tmp_path / "wrong" / "a.jsonl", wrong))[0])
    assert all(0 <= each < 2 ** 63 for each in first)


def test_duplicates_and_long_prompts_are_dropped_and_counted(tmp_path):
    long = {"question": "x" * 100, "answer": "#### 1"}
    prompts = prompts_of(tmp_path / "a.jsonl", [*sums(5), *sums(3), long], max_prompt_tokens=60)
    pool = build_pool(prompts, TOKENIZER)
    lengths = [len(ids) for ids in encode([each.messages for each in read_prompts(prompts)[0].values()], TOKENIZER)]
    assert {key: pool.facts[key] for key in ("rows", "duplicates", "too_long", "prompts", "longest_tokens")} == {
        "rows": 9, "duplicates": 3, "too_long": 1, "prompts": 5, "longest_tokens": max(lengths[:5])}
    assert pool.prompt_ids == sorted(pool.prompt_ids) and len(pool.prompt_ids) == 5


def test_the_limit_counts_tokens_exactly(tmp_path):
    rows = [{"question": "x" * n, "answer": "1"} for n in range(1, 20)]
    longest = build_pool(prompts_of(tmp_path / "a.jsonl", rows), TOKENIZER).facts["longest_tokens"]
    facts = build_pool(prompts_of(tmp_path / "b.jsonl", rows, max_prompt_tokens=longest - 1), TOKENIZER).facts
    assert (facts["too_long"], facts["longest_tokens"]) == (1, longest - 1)


def test_a_set_that_is_empty_after_filtering_is_refused_with_the_numbers(tmp_path):
    prompts = prompts_of(tmp_path / "a.jsonl", sums(5), max_prompt_tokens=3)
    said = one_line(lambda: build_pool(prompts, TOKENIZER))
    assert "all 5 are longer than prompts.max_prompt_tokens = 3 (the shortest has" in said
    assert "has no rows" in one_line(lambda: build_pool(prompts_of(tmp_path / "b.jsonl", []), TOKENIZER))


def test_a_round_larger_than_the_pool_is_refused(tmp_path):
    prompts = prompts_of(tmp_path / "a.jsonl", [*sums(5), *sums(5)], per_round=6)
    assert "prompts.per_round = 6 is more than the 5 prompts" in one_line(lambda: build_pool(prompts, TOKENIZER))


def test_a_source_that_changed_since_the_run_began_is_refused(tmp_path):
    for limit in (2048, 33):
        prompts = prompts_of(tmp_path / f"a{limit}.jsonl", sums(12), max_prompt_tokens=limit)
        began_with = build_pool(prompts, TOKENIZER)
        assert rebuild_pool(prompts, began_with.facts, lambda: TOKENIZER) == began_with
        changed = prompts_of(tmp_path / f"b{limit}.jsonl", sums(11), max_prompt_tokens=limit)
        said = one_line(lambda: rebuild_pool(changed, began_with.facts, lambda: TOKENIZER))
        assert "prompts.source changed since the run began" in said


def test_a_prompt_and_its_response_must_fit_the_models_window(tmp_path):
    config = load_config(make_tiny(tmp_path), ["rollout.max_new_tokens=4090"])
    said = one_line(lambda: check_pool(config))
    assert "the student reads 4096 tokens" in said and "rollout.max_new_tokens = 4090" in said


@pytest.mark.skipif(not os.environ.get("OPD_DATA_DIR"),
                    reason="OPD_DATA_DIR is not set: it names a folder with the public data sets")
def test_the_public_math_set_has_its_duplicates_dropped():
    config = load_config(Path(__file__).parents[2] / "examples" / "dapo_math.toml")
    found, duplicates = read_prompts(config.prompts)
    assert (len(found), duplicates) == (17405, 512)
