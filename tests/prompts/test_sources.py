"""Problems from files, hub names, generators; and what is said where they are not as named."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import load_config
from pipeline.config.model import FileSource, GeneratedSource, HubSource
from pipeline.prompts.local_copies import file_names
from pipeline.prompts.sources import read_source
from storage.errors import UserError

EXAMPLES = Path(__file__).parents[2] / "examples"
public_data = pytest.mark.skipif(not os.environ.get("OPD_DATA_DIR"),
                                 reason="OPD_DATA_DIR is not set: it names a folder with the public data sets")
CHAT = [{"role": "user", "content": "What is 1 + 1?"}]


def write_jsonl(file: Path, rows: list) -> Path:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def write_parquet(file: Path) -> Path:
    rows = [{"prompt": CHAT, "reward_model": {"ground_truth": str(n), "style": "rule"}, "dotted.name": n}
            for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def one_line(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_jsonl_rows_are_read_and_an_answer_after_hashes_is_the_reference(tmp_path):
    file = write_jsonl(tmp_path / "sums.jsonl", [
        {"question": "1 + 1?", "answer": "One and one.\n#### 2 "}, "", {"question": "2 + 2?", "answer": "4"},
        {"question": "3 + 3?", "answer": 6.0}, {"question": "4 + 4?"}, {"question": "5 + 5?", "answer": "####"}])
    problems = read_source(FileSource(path=str(file), solution="answer"))
    rows = problems.rows
    assert (problems.name, problems.total) == ("sums", 5)
    assert [(row.number, row.question, row.answer) for row in rows] == [
        (0, "1 + 1?", "2"), (1, "2 + 2?", "4"), (2, "3 + 3?", "6.0"), (3, "4 + 4?", None), (4, "5 + 5?", None)]
    assert rows[0].solution == "One and one.\n#### 2 "


def test_parquet_columns_may_be_chats_and_nested(tmp_path):
    file = write_parquet(tmp_path / "chats.parquet")
    problems = read_source(FileSource(path=str(file), name="chats", question="prompt",
                                      answer="reward_model.ground_truth", solution="dotted.name", limit=2))
    assert (problems.name, problems.total) == ("chats", 2)
    assert [(row.question, row.answer, row.solution) for row in problems.rows] == [(CHAT, "0", "0"), (CHAT, "1", "1")]


def test_the_answer_may_be_left_out(tmp_path):
    file = write_jsonl(tmp_path / "open.jsonl", [{"question": "Why?"}])
    assert read_source(FileSource(path=str(file), answer="")).rows[0].answer is None


def test_generated_problems_carry_answer_and_solution():
    problems = read_source(GeneratedSource(problems=5, seed=3))
    assert problems.name == "arithmetic" and len(problems.rows) == problems.total == 5
    assert all(row.answer and row.answer in row.solution for row in problems.rows)


@pytest.mark.parametrize("source, said", [
    ({"question": "prmpt"}, "has no column 'prmpt': the nearest is 'prompt'"),
    ({"question": "prompt", "answer": "reward_model.truth"}, "the nearest is 'reward_model.ground_truth'"),
    ({"question": "prompt", "answer": "zzzzzz"}, "it has prompt, reward_model"),
])
def test_a_missing_parquet_column_is_named_with_the_nearest(tmp_path, source, said):
    file = write_parquet(tmp_path / "chats.parquet")
    assert said in one_line(lambda: read_source(FileSource(path=str(file), **source)))


def test_a_missing_jsonl_column_is_named_with_the_nearest(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [{"question": "?", "extra": {"result": 3}}])
    said = one_line(lambda: read_source(FileSource(path=str(file), answer="extra.resul")))
    assert "has no column 'extra.resul': the nearest is 'extra.result'" in said


@pytest.mark.parametrize("content, said", [
    ('{"question": "a", "answer": "1"}\n{"question": ', "line 2 is not JSON"),
    ("[1, 2]\n", "line 1 is a JSON list"),
    ('{"question": "", "answer": "1"}\n', "row 0 has no 'question'"),
    ('{"question": "a", "answer": "1"}\n{"answer": "1"}\n', "row 1 has no 'question'"),
    (b"\xff\xfe\x00", "is not UTF-8"),
])
def test_a_broken_jsonl_file_is_refused_by_line(tmp_path, content, said):
    file = tmp_path / "broken.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in one_line(lambda: read_source(FileSource(path=str(file))))


@pytest.mark.parametrize("name, said", [("none.parquet", "does not exist"), ("folder.parquet", "is a folder"),
                                        ("text.csv", "is neither .parquet nor .jsonl"),
                                        ("broken.parquet", "is not a whole Parquet file")])
def test_a_file_that_is_none_is_refused_by_name(tmp_path, name, said):
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "text.csv").write_text("question\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    message = one_line(lambda: read_source(FileSource(path=str(tmp_path / name))))
    assert said in message and name in message


def test_a_hub_name_is_looked_for_in_the_data_folder_first(tmp_path, monkeypatch):
    monkeypatch.setenv("OPD_DATA_DIR", str(tmp_path))
    write_jsonl(tmp_path / "gsm8k_test.jsonl", [{"question": "1 + 1?", "answer": "#### 2"}])
    problems = read_source(HubSource(name="openai/gsm8k", subset="main", split="test"))
    assert problems.name == "openai/gsm8k" and [row.answer for row in problems.rows] == ["2"]


def test_the_hubs_column_names_work_with_a_copy_that_has_others(tmp_path, monkeypatch):
    monkeypatch.setenv("OPD_DATA_DIR", str(tmp_path))
    write_parquet(tmp_path / "math500.parquet")
    source = HubSource(name="HuggingFaceH4/MATH-500", split="test", question="problem", answer="answer")
    problems = read_source(source)
    assert problems.name == "HuggingFaceH4/MATH-500"
    assert [(row.question, row.answer) for row in problems.rows] == [(CHAT, str(n)) for n in range(3)]


def test_hub_names_map_to_files_by_one_rule():
    assert file_names("openai/gsm8k", "train") == ["gsm8k_train.parquet", "gsm8k_train.jsonl", "gsm8k.parquet",
                                                   "gsm8k.jsonl"]
    assert "dapo_math_17k.parquet" in file_names("BytedTsinghua-SIA/DAPO-Math-17k", "train")
    assert file_names("../../etc/passwd", "../x")[0] == "passwd_x.parquet"


@pytest.mark.parametrize("folder, said", [
    (None, "OPD_DATA_DIR is not set (a folder with gsm8k_train.parquet or gsm8k_train.jsonl"),
    ("", "has no gsm8k_train.parquet or gsm8k_train.jsonl")])
def test_without_network_and_without_a_copy_one_line_says_what_would_help(tmp_path, monkeypatch, folder, said):
    pytest.importorskip("datasets")
    monkeypatch.delenv("OPD_DATA_DIR", raising=False)
    if folder is not None:
        monkeypatch.setenv("OPD_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = one_line(lambda: read_source(HubSource(name="openai/gsm8k", subset="main")))
    assert said in message and "data set openai/gsm8k (split train) cannot be had from the hub" in message


def test_the_hubs_library_reads_a_set_by_split_and_columns(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.delenv("OPD_DATA_DIR", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    row = {"prompt": CHAT, "reward_model": {"ground_truth": "2"}, "other": 1}
    write_jsonl(folder / "train.jsonl", [row, row, {**row, "reward_model": {"ground_truth": "3"}}, {**row, "other": 2}])
    source = {"name": str(folder), "question": "prompt", "answer": "reward_model.ground_truth"}
    problems = read_source(HubSource(**source))
    assert problems.total == 4
    assert [(row.number, row.question, row.answer) for row in problems.rows] == [(0, CHAT, "2"), (2, CHAT, "3")]
    assert [row.number for row in read_source(HubSource(**source, limit=2)).rows] == [0]
    assert "has no column 'promt': the nearest is 'prompt'" in one_line(
        lambda: read_source(HubSource(**{**source, "question": "promt"})))
    assert "(split test) cannot be had" in one_line(lambda: read_source(HubSource(**source, split="test")))


@public_data
@pytest.mark.parametrize("example, rows, first", [("gsm8k", 7473, "72"), ("dapo_math", 17917, "34"),
                                                  ("paper_qwen2.5_7b", 17917, "34")])
def test_the_examples_sources_are_the_public_sets(example, rows, first):
    config = load_config(EXAMPLES / f"{example}.toml")
    problems = read_source(config.prompts.source)
    assert problems.name == config.prompts.source.name
    assert problems.total == rows and problems.rows[0].answer == first
    assert all(row.answer for row in problems.rows)


@public_data
@pytest.mark.parametrize("name, split, rows", [("HuggingFaceH4/MATH-500", "test", 500),
                                               ("HuggingFaceH4/aime_2024", "train", 30),
                                               ("AI-MO/aimo-validation-amc", "train", 83)])
def test_the_public_benchmarks_are_read_by_their_hub_names(name, split, rows):
    problems = read_source(HubSource(name=name, split=split, question="problem", answer="answer"))
    assert problems.total == rows and all(row.answer and row.question for row in problems.rows)
