"""Commands for people: what they print, and what a mistake looks like. None of them starts a model."""

import json
from pathlib import Path

import pytest

from flows.cli import main
from pipeline.config import load_config
from storage.objects import open_store
from storage.rounds import create_run


@pytest.fixture
def store(tmp_path) -> Path:
    """A store with a run that has not begun its first round."""
    create_run(open_store(tmp_path / "store", create=True), "begun", {"config": {"rounds": 1}})
    return tmp_path / "store"


def refused(capsys, *arguments, said: str, code: int = 2) -> None:
    assert main([str(argument) for argument in arguments]) == code
    error = capsys.readouterr().err.strip()
    assert said in error and error.startswith("opd: ") and "\n" not in error


def test_init_writes_a_config_that_loads_and_never_overwrites_one(tmp_path, capsys):
    file = tmp_path / "my.toml"
    assert main(["init", str(file), "--student", "a", "--teacher", "b"]) == 0
    assert "opd run" in capsys.readouterr().out
    assert load_config(file).student.path == "a"
    refused(capsys, "init", file, said="exists already")


def test_doctor_names_each_part_of_the_machine(tmp_path, capsys):
    assert main(["doctor", "--json", "--store", str(tmp_path)]) == 0
    found = {line["what"]: line["level"] for line in json.loads(capsys.readouterr().out)}
    assert found["torch"] == found["duckdb"] == found["prefect"] == "ok"


def test_a_stage_of_a_run_that_is_not_there_is_refused(store, capsys):
    refused(capsys, "score", "--run", "nope", "--round", "0", "--store", store, said="run nope is not in the store")
    refused(capsys, "score", "--run", "../x", "--round", "0", "--store", store, said="is not clean")


def test_a_stage_before_its_time_is_refused(store, capsys):
    refused(capsys, "score", "--run", "begun", "--round", "0", "--store", store, said="has no plan")
    refused(capsys, "score", "--run", "begun", "--round", "3", "--store", store, said="the next is round 0")


def test_a_place_that_is_no_store_is_refused_by_every_verb(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("mine")
    for verb in (["verify"], ["sql", "SELECT 1"], ["lineage", "abcd"], ["train", "--run", "a", "--round", "0"]):
        refused(capsys, *verb, "--store", tmp_path, said="is not a store")
        refused(capsys, *verb, "--store", tmp_path / "absent", said="does not exist")
    assert [each.name for each in tmp_path.iterdir()] == ["precious.txt"]


def test_sql_mistakes_are_one_line_with_the_nearest_name(store, capsys):
    refused(capsys, "sql", "overlap_by_rund", "--store", store, said="did you mean overlap_by_round?")
    refused(capsys, "sql", "SELECT * FROM tokenz", "--store", store, said="tokenz")
    refused(capsys, "sql", "COPY rounds TO 'x.csv'", "--store", store, said="only read")
    refused(capsys, "sql", "SELECT * FROM read_csv('/etc/passwd')", "--store", store, said="read_csv")


def test_json_of_sql_is_json_and_keeps_every_column(store, capsys):
    main(["sql", "SELECT 'a' AS n, 1 AS n, '-inf'::DOUBLE AS tail, ['nan'::FLOAT, 2] AS list", "--store", str(store),
          "--json"])
    assert json.loads(capsys.readouterr().out) == [{"n": "a", "n_1": 1, "tail": None, "list": [None, 2.0]}]


def test_text_of_a_model_reaches_a_terminal_without_its_control_characters(store, capsys):
    main(["sql", "SELECT chr(27) || '[31mred' || chr(8238) AS text", "--store", str(store)])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "‮" not in shown and "\\x1b[31mred" in shown


def test_a_mistyped_command_exits_with_2(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["runn"])
    assert ended.value.code == 2
