"""`opd sql` for people and programs: forms, files, values, the list of what there is, and mistakes."""

import json
import os
import pty
import resource
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import made_rounds as made
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.cli import main
from flows.commands.sql import parameters
from flows.table_output import rows
from storage import catalog, sqlfiles
from storage.objects import open_store

ROOT = Path(__file__).parents[2]
ASKED = [(kind, name) for kind in ("reports", "views", "macros") for name in sqlfiles.names(kind)]
QUERY = ("SELECT position, gap, token_text, teacher_topk_ids, turns[1] AS turn FROM tokens "
         "JOIN rollouts USING (run, round, rollout_id) LEFT JOIN vocabulary USING (run, token_id) "
         "WHERE rollout_id = 1 ORDER BY position")
TEXTS = ['=1+"1"', None, "\x1b[31mred"]
ROWS = [{"position": position, "gap": gap, "token_text": text, "teacher_topk_ids": [token, 101, 102, 103],
         "turn": {"start": 0, "end": 3}}
        for position, gap, text, token in zip(range(3), (-0.5, -1.5, -2.5), TEXTS, (5, 6, 7))]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """One round of five tokens; token 5 reads like a formula, 7 like a colour, 6 has no text."""
    folder = tmp_path_factory.mktemp("asked")
    store = open_store(folder / "store", create=True)
    vocabulary = {TEXTS[0]: 5, TEXTS[2]: 7}
    made.start_run(store, folder, tokenizer=json.dumps({"model": {"type": "BPE", "vocab": vocabulary}}))
    responses = {1: [5, 6, 7], 2: [5, 5]}
    scored = made.tokens(responses, teacher_log_prob=[-1.0, -2.0, -3.0, -0.5, -0.25], student_log_prob=[-0.5] * 5,
                         teacher_rank=[1, 2, 3, 1, 1])
    weights = made.mask(scored, [0.0, 1.0, 1.0, 1.0, 1.0], [["early"], [], [], [], []])
    made.commit_round(store, folder, "made", 0, [(made.rollouts(responses), scored)], [weights])
    return folder / "store"


@pytest.fixture
def ask(store, capsys):
    """Run `opd sql` over the store; returns what it printed."""
    def run(*arguments) -> str:
        assert main(["sql", *map(str, arguments), "--store", str(store)]) == 0
        return capsys.readouterr().out
    return run


@pytest.fixture
def refused(store, capsys):
    """Run `opd sql`, which must refuse with one line that says `said`."""
    def run(*arguments, said: str) -> None:
        assert main(["sql", *map(str, arguments), "--store", str(store)]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("opd: ") and said in error and "\n" not in error, error
    return run


# --- forms ---


def test_json_holds_the_rows(ask):
    assert json.loads(ask(QUERY, "--json")) == ROWS
    assert ask(QUERY, "--format", "json") == ask(QUERY, "--json")


def test_parquet_holds_the_rows_and_their_types(ask, tmp_path):
    assert ask(QUERY, "--out", tmp_path / "rows.parquet") == ""
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.to_pylist() == ROWS
    kinds = dict(zip(table.column_names, table.schema.types))
    assert (kinds["position"], kinds["gap"], kinds["token_text"]) == (pa.int32(), pa.float32(), pa.string())
    assert pa.types.is_list(kinds["teacher_topk_ids"]) and kinds["teacher_topk_ids"].value_type == pa.int32()
    assert {field.name: field.type for field in kinds["turn"]} == {"start": pa.int32(), "end": pa.int32()}


def test_csv_is_exact_text_with_lists_as_json(ask):
    assert ask(QUERY, "--format", "csv") == (
        '"position","gap","token_text","teacher_topk_ids","turn"\n'
        '0,-0.5,"=1+""1""","[5, 101, 102, 103]","{""start"": 0, ""end"": 3}"\n'
        '1,-1.5,,"[6, 101, 102, 103]","{""start"": 0, ""end"": 3}"\n'
        '2,-2.5,"\x1b[31mred","[7, 101, 102, 103]","{""start"": 0, ""end"": 3}"\n')


def test_csv_tells_null_from_nothing_and_keeps_line_breaks(ask):
    assert ask("SELECT NULL::VARCHAR AS a, '' AS b, 'x,' || chr(10) || 'y' AS c, 'nan'::DOUBLE AS d, "
               "'-inf'::FLOAT AS e, ['nan'::FLOAT, 1] AS f, true AS g", "--format", "csv") == (
        '"a","b","c","d","e","f","g"\n,"","x,\ny",nan,-inf,"[null, 1.0]",true\n')


def test_a_spreadsheets_formulas_are_kept_and_told(ask, store, capsys):
    main(["sql", QUERY, "--format", "csv", "--store", str(store)])
    found = capsys.readouterr()
    assert '"=1+""1"""' in found.out
    assert "1 texts begin with = + - or @ and are kept" in found.err
    main(["sql", "SELECT '1=1' AS x, -1 AS n", "--format", "csv", "--store", str(store)])
    assert capsys.readouterr().err == ""


def test_every_type_that_duckdb_has_comes_out_in_every_form(ask, tmp_path):
    query = ("SELECT sum(range)::HUGEINT AS s, 1.5::DECIMAL(5,2) AS d, DATE '2024-02-03' AS day, TIME '01:00' AS hour, "
             "TIMESTAMP '2024-02-03 01:00' AS at, 'a'::ENUM('a') AS e, '{\"x\":1}'::JSON AS j, 'ab'::BLOB AS b, "
             "map {'k': 1} AS m, [1, 2]::INTEGER[2] AS f, NULL AS n FROM range(4)")
    (row,) = json.loads(ask(query, "--json"))
    assert row == {"s": 6, "d": 1.5, "day": "2024-02-03", "hour": "01:00:00", "at": "2024-02-03 01:00:00", "e": "a",
                   "j": '{"x":1}', "b": "6162", "m": [["k", 1]], "f": [1, 2], "n": None}
    ask(query, "--out", tmp_path / "types.parquet")
    (kept,) = pq.read_table(tmp_path / "types.parquet").to_pylist()
    assert (kept["s"], kept["d"], kept["b"], str(kept["day"])) == (6, Decimal("1.50"), b"ab", "2024-02-03")
    assert ask(query, "--format", "csv").splitlines()[1].startswith('6,1.50,2024-02-03,01:00:00')


def test_what_parquet_cannot_hold_is_told(refused, tmp_path):
    refused("SELECT union_value(a := 1) AS u", "--out", tmp_path / "u.parquet", said="Parquet cannot hold this result")
    assert list(tmp_path.iterdir()) == []


def test_a_column_that_comes_twice_keeps_its_values_in_every_form(ask, tmp_path):
    query = "SELECT 1 AS n, 2 AS n, 3 AS n_1, 4 AS n"
    expected = {"n": 1, "n_2": 2, "n_1": 3, "n_3": 4}
    assert json.loads(ask(query, "--json")) == [expected]
    ask(query, "--out", tmp_path / "n.parquet")
    assert pq.read_table(tmp_path / "n.parquet").to_pylist() == [expected]
    assert ask(query, "--format", "csv").splitlines()[0] == '"n","n_2","n_1","n_3"'


def test_many_rows_are_one_json_array(ask):
    assert json.loads(ask("SELECT range AS n FROM range(25000)", "--json")) == [{"n": n} for n in range(25000)]
    assert json.loads(ask("SELECT 1 AS n WHERE false", "--json")) == []


@pytest.mark.parametrize("name, format", [("a.json", None), ("b.csv", None), ("c.parquet", None), ("d.txt", "csv"),
                                          ("e.csv", "json")])
def test_a_file_has_the_form_that_was_asked_for_or_that_its_name_says(ask, tmp_path, name, format):
    ask("SELECT 7 AS n", "--out", tmp_path / name, *(["--format", format] if format else []))
    data = (tmp_path / name).read_bytes()
    form = format or name[2:]
    assert {"json": data == b'[{"n": 7}]\n', "csv": data == b'"n"\n7\n', "parquet": data[:4] == b"PAR1"}[form]
    assert os.listdir(tmp_path) == [name]


def test_a_file_that_exists_is_replaced_only_by_force(ask, refused, tmp_path):
    target = tmp_path / "mine.csv"
    target.write_text("precious")
    refused("SELECT nonsense", "--out", target, said="exists already")  # before the query runs
    assert target.read_text() == "precious"
    ask("SELECT 1 AS n", "--out", target, "--force")
    assert target.read_text() == '"n"\n1\n' and os.listdir(tmp_path) == ["mine.csv"]


@pytest.mark.parametrize("arguments, said", [
    (["--format", "parquet"], "name a file with --out"),
    (["--out", "{folder}/x.txt"], "needs --format json, csv or parquet"),
    (["--out", "{folder}/x.csv", "--format", "table"], "a table is for a terminal"),
    (["--json", "--format", "csv"], "contradict each other"),
    (["--out", "{folder}"], "is a folder, a link or a device"),
    (["--out", "{folder}/absent/x.csv"], "does not exist: make it"),
    (["--out", "/dev/null", "--format", "csv", "--force"], "a device"),
    (["--out", "{folder}/link.csv", "--force"], "a link"),
    (["--out", "{store}/x.csv"], "lies inside the store"),
    (["--out", "{store}/run=made/../x.csv"], "lies inside the store"),
    (["--out", "s3://bucket/x.csv"], "not a file of this machine"),
    (["--out", "/proc/x.csv"], "cannot be written"),
    (["--out", "{folder}/" + "x" * 300 + ".csv"], "cannot be written (File name too long)"),
    (["--list"], "ask one"),
    (["--describe", "tokens"], "ask one"),
])
def test_what_cannot_be_written_is_told_in_one_line(refused, store, tmp_path, arguments, said):
    (tmp_path / "link.csv").symlink_to(tmp_path / "elsewhere.csv")
    (tmp_path / "elsewhere.csv").write_text("precious")
    formatted = [argument.format(folder=tmp_path, store=store) for argument in arguments]
    if "--out" in formatted and "--format" not in formatted and "." not in Path(formatted[1]).name:
        formatted += ["--format", "csv"]
    refused("SELECT 1 AS n", *formatted, said=said)
    assert sorted(os.listdir(tmp_path)) == ["elsewhere.csv", "link.csv"]
    assert (tmp_path / "elsewhere.csv").read_text() == "precious"
    assert sorted(path.name for path in store.iterdir()) == ["run=made", "store.json"]


def test_a_form_that_is_not_known_is_refused_with_those_that_are(store, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["sql", "SELECT 1", "--format", "xlsx", "--store", str(store)])
    assert ended.value.code == 2
    assert "'table', 'json', 'csv', 'parquet'" in capsys.readouterr().err


def full_after(size: int):
    """For a child: no file may grow beyond `size` bytes, as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_a_disk_that_runs_full_leaves_nothing_half_written(store, tmp_path, form):
    command = [sys.executable, "-m", "flows.cli", "sql", "SELECT range AS n, hash(range) AS h FROM range(200000)",
               "--out", str(tmp_path / f"big.{form}"), "--store", str(store)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=full_after(100_000))
    assert run.returncode == 2 and "cannot be written (File too large)" in run.stderr, run.stderr
    assert os.listdir(tmp_path) == []


def test_a_terminal_gets_no_control_characters_from_a_csv(store):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "flows.cli", "sql", QUERY, "--format", "csv", "--store", str(store)]
    child = subprocess.run(command, cwd=ROOT, stdout=theirs, stderr=subprocess.DEVNULL)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert child.returncode == 0 and "\x1b" not in shown and '"\\x1b[31mred"' in shown


# --- values ---


def test_values_are_bound_never_spliced(ask):
    query = "SELECT count(*) AS n FROM tokens WHERE task = $task AND round = $round"
    assert json.loads(ask(query, "--param", "task=math", "--param", "round=0", "--json")) == [{"n": 5}]
    assert json.loads(ask(query, "--param", "task=math' OR true --", "--param", "round=0", "--json")) == [{"n": 0}]
    shown = "SELECT $text AS text"
    assert json.loads(ask(shown, "--param", "text=x'); COPY tokens TO 'y", "--json"))[0]["text"] == (
        "x'); COPY tokens TO 'y")


@pytest.mark.parametrize("text, value", [
    ("3", 3), ("-2.5", -2.5), ("1e3", 1000.0), ("true", True), ("null", None), ('"7"', "7"), ("", ""), ("math", "math"),
    ("a=b", "a=b"), ("[1, 2]", [1, 2]), ("NaN", "NaN"), ('{"a": 1}', '{"a": 1}'), ("[" * 99999, "[" * 99999),
])
def test_a_value_is_what_it_reads_as(text, value):
    assert parameters([f"x={text}"]) == {"x": value}


def test_a_report_takes_values_and_says_which(ask, refused):
    found = json.loads(ask("rollout_tokens", "--param", "rollout_id=1", "--json"))
    first = {"run": "made", "round": 0, "position": 0, "token_id": 5, "token_text": TEXTS[0],
             "teacher_first": TEXTS[0], "gap": -0.5, "student_log_prob": -0.5, "teacher_log_prob": -1.0,
             "teacher_rank": 1, "weight": 0.0, "reasons": ["early"]}
    assert found[0] == first
    assert [(row["position"], row["gap"], row["token_text"]) for row in found] == [
        (0, -0.5, TEXTS[0]), (1, -1.5, None), (2, -2.5, TEXTS[2])]
    refused("rollout_tokens", said="rollout_tokens needs --param rollout_id=VALUE (rollouts.rollout_id")
    refused("rollout_tokens", "--param", "rollout_id=one", said="Could not convert string 'one'")
    refused("worst_tokens", "--param", "round=1", said="--param round is not in the SQL, which names no values")


@pytest.mark.parametrize("arguments, said", [
    (["SELECT $a", "--param", "b=1"], "the SQL needs --param a=VALUE"),
    (["SELECT $a", "--param", "a=1", "--param", "b=1"], "--param b is not in the SQL, which names $a"),
    (["SELECT $a", "--param", "a=1", "--param", "a=2"], "--param a is given twice"),
    (["SELECT ?"], "write $name for ?"),
    (["SELECT 1", "--param", "a"], "is not name=value"),
    (["SELECT 1", "--param", "a b=1"], "is not name=value"),
])
def test_values_that_do_not_fit_the_sql_are_refused(refused, arguments, said):
    refused(*arguments, said=said)


# --- what there is ---


def test_the_list_names_every_file_that_can_be_asked(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where no store is
    main(["sql", "--list"])
    printed = capsys.readouterr().out
    assert {name for _, name in ASKED} <= {line.split()[0] for line in printed.splitlines() if line.startswith("  ")}
    assert "  rollouts          what the student wrote\n" in printed
    main(["sql"])
    assert capsys.readouterr().out == printed
    main(["sql", "--list", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [(row["kind"] + "s", row["name"]) for row in found] == ASKED
    assert {row["name"]: row["description"] for row in found}["masked_by_reason"] == (
        "what each mask touched. A token with two reasons counts under both.")


@pytest.mark.parametrize("kind, name", ASKED)
def test_a_description_has_every_column_with_its_meaning(capsys, kind, name):
    main(["sql", "--describe", name, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {row["column"]: row["meaning"] for row in found} == sqlfiles.load(kind, name).columns
    assert all((row["type"] is None) == (kind == "macros") for row in found)
    main(["sql", "--describe", name])
    printed = capsys.readouterr().out
    assert printed.startswith(f"{name} ({kind[:-1]}): ") and all(len(line) <= 100 for line in printed.splitlines())


def test_types_and_units_are_described(capsys):
    main(["sql", "--describe", "tokens"])
    printed = capsys.readouterr().out.splitlines()
    assert "grain: run, round, rollout_id, position" in printed
    assert any(line.split() == "teacher_entropy FLOAT nats".split() for line in printed)
    main(["sql", "--describe", "rollout_tokens"])
    assert "needs --param rollout_id=VALUE: rollouts.rollout_id" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, said", [
    (["overlap_by_rund"], "did you mean overlap_by_round?"),
    (["qqq"], "`opd sql --list` tells what there is"),
    (["tokens"], "tokens is a view, not a report: ask it in SQL, as in 'FROM tokens LIMIT 10'"),
    (["--describe", "rolouts"], "did you mean rollouts?"),
    (["--describe", "../views/tokens"], "nothing is named ../views/tokens"),
    (["SELECT gab FROM tokens"], '"gap"'),
    (["SELECT * FROM tokenz"], "tokens"),
    (["SELECT 1", "--run", "nope"], "it has made"),
])
def test_a_mistyped_name_is_refused_with_the_nearest(refused, arguments, said):
    refused(*arguments, said=said)


def test_a_place_that_is_no_store_is_refused_before_anything_is_written(tmp_path, capsys):
    assert main(["sql", "SELECT 1", "--store", str(tmp_path), "--out", str(tmp_path / "x.csv")]) == 2
    assert "is not a store" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], ["sql", "--help"], ["catalog", "--help"], ["sql", "--list"]])
def test_help_and_the_list_start_without_anything_heavy(arguments):
    code = (f"import sys, flows.cli\ntry: flows.cli.main({arguments!r})\nexcept SystemExit: pass\n"
            "print('\\n'.join(sys.modules), file=sys.stderr)")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in run.stderr.split()}
    assert not loaded & {"torch", "duckdb", "pyarrow", "prefect", "rich", "pandas", "numpy"}


def test_rows_of_a_connection_are_dicts():
    """What other modules use."""
    with catalog.connect_empty() as connection:
        assert rows(catalog.query(connection, "SELECT 1 AS a, 2 AS a")) == [{"a": 1, "a_1": 2}]
