"""The evaluate stage on a tiny pair: who is graded when, what is copied, and what is refused before anything runs."""

import json

import pyarrow.parquet as pq
import pytest

from pipeline.config import load_config
from pipeline.config.model import RunConfig
from pipeline.evaluate.answers import is_correct
from storage.objects import open_store
from storage.rounds import Round
from tests.flows.test_run import finished, opd, refused  # noqa: F401  (a fixture)
from tests.tiny import make_tiny, write_problems


def rows(folder, number: int, run: str = "tiny") -> list[dict]:
    return Round(open_store(str(folder / "store")), run, number).read("evaluate").to_pylist()


def test_the_first_round_grades_both_ends_of_the_gap_and_every_round_its_student(finished):  # noqa: F811
    graded = [{row["role"]: row["model"] for row in rows(finished, number)} for number in (0, 1)]
    manifests = [Round(open_store(str(finished / "store")), "tiny", number).manifest() for number in (0, 1)]
    assert graded[0].keys() == {"start", "teacher", "student"} and graded[1].keys() == {"student"}
    assert graded[0]["start"] == manifests[0].checkpoint_in.fingerprint
    assert [each["student"] for each in graded] == [each.checkpoint_out.fingerprint for each in manifests]


def test_every_answer_has_a_row_with_its_verdict_and_the_draws_are_the_same_for_all_models(finished):  # noqa: F811
    found = rows(finished, 0)
    places = {role: [(row["prompt_id"], row["sample"], row["seed"]) for row in found if row["role"] == role]
              for role in ("start", "teacher", "student")}
    assert places["start"] == places["teacher"] == places["student"] and len(set(places["start"])) == 4 * 2
    assert places["start"] == sorted(places["start"], key=lambda place: place[:2])
    for row in found:
        assert row["verdict_reason"] and row["task"] == "sums" and int(row["ground_truth"]) >= 3000
        assert is_correct(row["response_text"], row["ground_truth"])[0] <= row["correct"]
        assert json.loads(row["messages"])[0]["content"].startswith("What is 10")


def test_a_second_run_copies_the_teachers_rows_and_grades_its_own_students(finished, tmp_path):  # noqa: F811
    import shutil

    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "config.toml"
    config.write_text(config.read_text().replace(str(finished / "store"), str(tmp_path / "store")))
    opd("run", config, "--set", "run=other", "--set", "seed=4", "--set", "rounds=1")
    first, second = rows(tmp_path, 0), rows(tmp_path, 0, "other")

    def of(rows, role):
        return [row for row in rows if row["role"] == role]

    assert of(first, "teacher") == of(second, "teacher") and of(first, "start") == of(second, "start")
    assert {row["model"] for row in of(first, "student")} != {row["model"] for row in of(second, "student")}
    timings = Round(open_store(str(tmp_path / "store")), "other", 0).timings()
    copied = [timing["shard"] for timing in timings if "reused_from" in timing]
    plan = Round(open_store(str(tmp_path / "store")), "other", 0).plan()
    assert copied == [shard.index for shard in plan.evaluation if shard.role != "student"] != []
    assert "as it was" in opd("verify", "--store", tmp_path / "store").stdout


def test_any_model_is_graded_as_the_round_graded_it(finished, tmp_path):  # noqa: F811
    checkpoint = next((finished / "store/run=tiny/checkpoint=1").iterdir())
    asked = ["evaluate", "--model", checkpoint, finished / "config.toml", "--set", "evaluation.per_shard=3"]
    found = json.loads(opd(*asked, "--json", "--out", tmp_path / "answers.parquet").stdout)
    assert [(row["task"], row["problems"], row["samples"], row["k"]) for row in found] == [("sums", 4, 8, 2)]
    written = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    expected = [row for row in rows(finished, 0) if row["role"] == "student"]
    assert [row["prompt_id"] for row in written] == [row["prompt_id"] for row in expected]
    assert {row["model"] for row in written} == {row["model"] for row in expected}
    assert "sums" in opd(*asked).stdout
    again = opd(*asked, "--out", tmp_path / "answers.parquet", check=False)
    assert again.returncode == 2 and "exists already" in again.stderr


def test_evaluate_says_what_it_needs(finished, tmp_path):  # noqa: F811
    for arguments, said in ((["--run", "tiny"], "--run and --round"), (["--model", "m"], "needs a config"), (
            ["--run", "tiny", "--round", "0", "--model", "m"], "--run and --round"), (
            ["--run", "tiny", "--round", "0", "--out", "x.parquet"], "takes no --out"), (
            ["--model", "m", "c.toml", "--shard", "1"], "takes no --shard"), (
            ["--model", "m", finished / "config.toml", "--out", "x.csv"], "name x.parquet"), (
            ["--model", "m", finished / "config.toml", "--out", "no/x.parquet"], "folder no does not exist")):
        done = opd("evaluate", *arguments, check=False)
        assert done.returncode == 2 and said in done.stderr
    text = (finished / "config.toml").read_text()
    (tmp_path / "plain.toml").write_text(text[:text.index("[evaluation]")])
    done = opd("evaluate", "--model", finished / "student", tmp_path / "plain.toml", check=False)
    assert done.returncode == 2 and "no [evaluation]" in done.stderr


def test_a_run_without_evaluation_commits_and_one_that_evaluates_every_second_round_does_so(tmp_path):
    config = make_tiny(tmp_path, **{"evaluation.every": 2})
    opd("run", config)
    assert {row["role"] for row in rows(tmp_path, 0)} == {"start", "teacher"}
    assert {row["role"] for row in rows(tmp_path, 1)} == {"student"}
    text = config.read_text()
    config.write_text(text[:text.index("[evaluation]")].replace('run = "tiny"', 'run = "plain"'))
    opd("run", config, "--set", "rounds=1")
    assert "plain" in opd("sql", "SELECT run, gap_recovery FROM rounds", "--store", tmp_path / "store").stdout
    done = opd("evaluate", "--run", "plain", "--round", 0, "--store", tmp_path / "store", check=False)
    assert done.returncode == 2 and "has no shard of evaluate: its config has no [evaluation]" in done.stderr


def test_problems_that_are_trained_on_ungraded_or_too_long_are_refused(tmp_path):
    refused(tmp_path, f"evaluation.benchmark.0.source.path='{tmp_path}/problems.jsonl'", said="is not held out: "
            "prompts.source has 64 of its 64 problems")
    refused(tmp_path, "evaluation.benchmark.0.source.answer=''", said="no reference answer")
    refused(tmp_path, "evaluation.benchmark.0.source.path='missing.jsonl'", said="benchmark sums: prompts file "
            "missing.jsonl does not exist: evaluation.benchmark.source.path names")
    refused(tmp_path, "evaluation.max_new_tokens=4096", said="lower evaluation.max_new_tokens")
    refused(tmp_path, "evaluation.benchmark.0.name='a b'", said="evaluation.benchmark.0.name = 'a b'")
    refused(tmp_path, "evaluation.evry=2", said="did you mean evaluation.every?")


def test_a_teacher_that_writes_otherwise_is_another_teacher(finished, tmp_path):  # noqa: F811
    """Other places to end, another template: not the rows of the first, and refused where the run knows better."""
    import shutil

    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "config.toml"
    config.write_text(config.read_text().replace(str(finished), str(tmp_path)))
    generation = tmp_path / "teacher/generation_config.json"
    settings = json.loads(generation.read_text())
    generation.write_text(json.dumps({**settings, "eos_token_id": [*range(60, 90)]}))
    opd("run", config, "--set", "run=other", "--set", "rounds=1")
    timings = Round(open_store(str(tmp_path / "store")), "other", 0).timings()
    plan = Round(open_store(str(tmp_path / "store")), "other", 0).plan()
    copied = {plan.evaluation[timing["shard"]].role for timing in timings if "reused_from" in timing}
    assert copied == {"start"}
    opd("start", config, "--set", "run=third")
    (tmp_path / "teacher/chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    done = opd("run", config, "--set", "run=third", check=False)
    assert done.returncode == 2 and "template_hash differs" in done.stderr


def test_another_runs_damage_is_not_this_runs(finished, tmp_path):  # noqa: F811
    import shutil

    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "config.toml"
    config.write_text(config.read_text().replace(str(finished / "store"), str(tmp_path / "store")))
    folder = tmp_path / "store/run=tiny/round=0"
    (folder / "receipts/evaluate-0.json").write_bytes(b"{}")
    for shard in (folder / "evaluation").iterdir():
        shard.write_bytes(b"PAR1")
    opd("run", config, "--set", "run=other", "--set", "rounds=1")
    assert rows(tmp_path, 0, "other") == rows(finished, 0)


def test_two_benchmarks_of_one_name_are_refused(tmp_path):
    document = load_config(make_tiny(tmp_path)).model_dump(mode="json")
    document["evaluation"]["benchmark"] *= 2
    with pytest.raises(ValueError, match="two are named 'sums'"):
        RunConfig.model_validate(document)


def test_held_out_problems_that_changed_since_the_run_began_stop_its_next_round(tmp_path):
    config = make_tiny(tmp_path)
    opd("run", config, "--set", "rounds=1")
    write_problems(tmp_path / "held_out.jsonl", count=5, first=1000)
    done = opd("run", config, check=False)
    assert done.returncode == 2 and "benchmark sums changed since the run began: it gives 5 problems" in done.stderr
