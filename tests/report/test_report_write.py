"""`opd report` and `summary`: what they write, for runs at every stage, and what they refuse."""

import json
import re

import made_rounds as made
import pytest

from flows.cli import main
from flows.jobs import JOBS
from pipeline.context import silent
from pipeline.report import markdown, summary, write_report
from pipeline.report.asked import open_source
from pipeline.report.text import interval, number, on_one_line, place_of_model, seconds, size, visible
from storage import layout, schemas
from storage.errors import UserError
from storage.objects import open_store
from storage.rounds import EvaluationShard, Plan, PlanShard, Round, create_run, put_checkpoint


def report(capsys, *arguments):
    """Exit code, stdout and stderr of `opd report`."""
    code = main(["report", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def texts(store, run, folder, number=None):
    paths = write_report(store, run, number, folder)
    return [open(paths[kind], encoding="utf-8").read() for kind in ("html", "markdown")]


def section(page, name):
    """The HTML of one section."""
    return re.search(rf'<section id="{name}">.*?</section>', page, re.DOTALL)[0]


# --- the command ---


def test_the_command_prints_the_paths_of_both_files(plain, tmp_path, capsys):
    code, out, _ = report(capsys, "plain", "--store", plain.root, "--out", tmp_path / "deep" / "folder")
    assert code == 0
    assert out.split() == [str(tmp_path / "deep/folder/plain.html"), str(tmp_path / "deep/folder/plain.md")]
    code, out, _ = report(capsys, "plain", "--round", 1, "--store", plain.root, "--out", tmp_path, "--json")
    assert json.loads(out) == {"html": str(tmp_path / "plain-round-1.html"),
                               "markdown": str(tmp_path / "plain-round-1.md")}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["deep", "plain-round-1.html", "plain-round-1.md"]


@pytest.mark.parametrize("arguments,line", [
    (["nobody"], "opd: run nobody is not in the store"),
    (["plain", "--round", "7"], "opd: round 7 of plain is not in the store"),
    (["plain", "--round", "-1"], "opd: round -1 of plain is not in the store"),
    (["../plain"], "opd: run id '../plain' is not clean"),
    (["<script>"], "opd: run id '<script>' is not clean"),
])
def test_a_run_or_round_that_is_not_there_is_one_line(plain, tmp_path, capsys, arguments, line):
    code, out, err = report(capsys, *arguments, "--store", plain.root, "--out", tmp_path / "out")
    assert (code, out) == (2, "") and err.startswith(line) and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(plain, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    code, _, err = report(capsys, "plain", "--store", plain.root, "--out", tmp_path / "file")
    assert code == 2 and "cannot write to" in err and err.count("\n") == 1


# --- what is there, at every stage of a run ---


def test_a_run_without_a_round_says_so(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    made.start_run(store, tmp_path, "young")
    page, text = texts(store, "young", tmp_path / "out")
    assert "No round has been planned yet" in page and "0 rounds committed" in page
    assert "No round has been planned yet" in text and "<figure>" not in page


def test_each_stage_that_is_missing_is_named(tmp_path):
    """A round is reported after each single receipt, from the bare plan to its commit."""
    store = open_store(tmp_path / "store", create=True)
    made.start_run(store, tmp_path, "run")
    responses = {1: [5, 6], 2: [7]}
    scored = made.tokens(responses)
    tables = [("prompts", "prompts", schemas.PROMPTS.empty_table()),
              ("rollout", "rollouts", made.rollouts(responses)), ("score", "tokens", scored),
              ("mask", "mask", made.mask(scored)), ("train", "steps", made.steps()),
              ("evaluate", "evaluation", made.graded("student", {7: [True]}))]
    round = Round(store, "run", 0)
    round.put_plan(Plan(0, 0, None, "f", [PlanShard(0, [7], [[0]])], [EvaluationShard(0, "student", "sums", [7])]))
    missing = {"rollout": "No rollouts yet", "score": "No scores yet", "mask": "No mask yet",
               "train": "No optimizer steps yet", "evaluate": "Nothing was graded"}
    (tmp_path / "made").mkdir()
    (tmp_path / "made/model.safetensors").write_bytes(b"trained")
    done = []
    for stage, table, rows in tables:
        for asked in (None, 0):
            page, text = texts(store, "run", tmp_path / "out", asked)
            assert "in progress" in page and "in progress" in text
            for later, line in missing.items():
                assert (line in page) is (line in text) is (later not in done), (stage, later)
        checkpoint = put_checkpoint(store, "run", 1, tmp_path / "made") if stage == "train" else None
        more = {"scores": "abcdef01"} if stage == "score" else {}
        round.finish(stage, 0, table, rows, inputs={}, checkpoint=checkpoint, **more)
        done.append(stage)
    for stage in layout.STAGES:
        round.commit_stage(stage)
    round.commit()
    page, _ = texts(store, "run", tmp_path / "out")
    assert "in progress" not in page and not [line for line in missing.values() if line in page]


def test_a_round_in_progress_is_counted_shard_by_shard(plain, tmp_path):
    for page in texts(plain, "plain", tmp_path) + texts(plain, "plain", tmp_path, 3):
        assert "prompts 1 of 1, rollout 1 of 1, score 1 of 1, mask 0 of 1, train 0 of 1, evaluate 0 of 1" in page


def test_a_round_that_is_committed_while_the_report_is_made_is_not_in_it(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    made.start_run(store, tmp_path, "run")
    shards = [(made.rollouts({1: [5]}), made.tokens({1: [5]}))]
    made.commit_round(store, tmp_path, "run", 0, shards)
    source = open_source(store, "run", None)
    made.commit_round(store, tmp_path, "run", 1, shards)
    assert [row["round"] for row in source.rounds()] == [0] and source.committed == {0: True}


# --- figures ---


def test_the_figures_are_those_of_the_views(plain, tmp_path):
    """Start .1 (1 of 10 answers), after rounds 0, 1, 2: .2, .4, .6, teacher 1: recovery (.6 - .1) / .9 = .56."""
    page, text = texts(plain, "plain", tmp_path)
    assert 'avg@k, round 2</p><p class="value">60.0 %</p><p class="note">start 10.0 %, teacher 100.0 %' in page
    assert '<p class="value">0.56</p>' in page
    assert "| sums | start | 5 | 2 | 10.0 % " in text and "| sums | student after round 2 | 5 | 2 | 60.0 % " in text
    assert "| rollout | 4 | 9.0 s | 19 | " in text  # 2 + 3 + 4 seconds; the open round has no timing yet
    assert re.search(r"\| fifth \| 30 \| 30 \| 0 to 2 \| 20.8 % \|", text)  # 10 of each round's 48 tokens


def test_a_rounds_report_compares_it_with_the_one_before(plain, tmp_path):
    page, text = texts(plain, "plain", tmp_path, 2)
    assert "| metric | round 2 | round 1 | meaning |" in text
    assert re.search(r"\| avg\\_at\\_k \| 0.6000 \| 0.4000 \|", text)
    assert "| sums | start |" in text and "student after round 2" in text and "student after round 1" not in text
    assert '<span class="line solid c-age5"></span>round 2' in page and "</span>round 0" not in page


def test_the_warning_line_of_lsm_is_drawn_for_lsm_only(plain, tmp_path):
    assert "learns little below" not in texts(plain, "plain", tmp_path)[0]
    store = open_store(tmp_path / "store", create=True)
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    document = {"config": {"objective": {"type": "teacher_topk_lsm", "k": None}},
                "student_checkpoint": put_checkpoint(store, "lsm", 0, folder).as_dict()}
    create_run(store, "lsm", document)
    for each in range(2):
        made.commit_round(store, tmp_path, "lsm", each, [(made.rollouts({each: [5]}), made.tokens({each: [5]}))])
    page, _ = texts(store, "lsm", tmp_path / "out")
    assert "LSM learns little below 0.85" in section(page, "distance")


# --- metrics of a round ---


def test_why_training_ended_stands_beside_how_its_student_does(plain, tmp_path):
    """KL at the end .5 / (2 + round); the drift fuse ended round 1."""
    page, text = texts(plain, "plain", tmp_path)
    assert "| 1 | 4 | drift fuse | 0.1667 | 0.1667 | 1.100 | 0.900 | 8.0 % | 0.0480 | 0.800 |" in text
    assert "| 2 | 4 | all data used | 0.1250 |" in text
    assert section(page, "training").count("after the round") == 5
    numbers = texts(plain, "plain", tmp_path, 1)[1]
    assert re.search(r"\| stopped \| drift\\_fuse \| done \|", numbers)


def test_health_names_what_is_out_of_bounds(plain, tmp_path):
    """Round 1's engine wrote at e^-1 = .37 where the scorer has .5: KL -.307. Not LSM: no verdict on the mass."""
    page, text = texts(plain, "plain", tmp_path)
    assert "| 1 | 1.359 ✓ | −0.307 ✗ | 1.000 ✓ | 0.850 ✓ |" in text
    assert "health, round 3" in page and "3 of 3" in page and "student_mass (" not in section(page, "health")
    page, text = texts(plain, "plain", tmp_path, 1)
    assert re.search(r"\| rollout\\_kl \| −0.307 \| −0.1 to 0.1 \| ✗ \|", text)
    assert '<p class="value">3 of 4</p><p class="note">rollout_kl out of bounds</p>' in page


def test_tasks_are_set_side_by_side_where_there_are_several(plain, tmp_path):
    """Of six rollouts two thirds of `sums` are right and one third of `words`."""
    for asked in (None, 2):
        text = texts(plain, "plain", tmp_path, asked)[1]
        assert re.search(r"\| sums \| 3 \| 21 \| 66.7 % \| 1.00 \|", text), asked
        assert re.search(r"\| words \| 3 \| 27 \| 33.3 % \| 0.50 \|", text), asked
    assert 'id="tasks"' not in texts(plain, "plain", tmp_path, 3)[0]


def test_the_depth_curve_is_of_the_last_round_that_has_one(plain, tmp_path):
    page, text = texts(plain, "plain", tmp_path)
    assert "rollouts of round 2 were cut" in page and section(page, "depth").count("<svg") == 2
    assert "| math | 4 | 5 | 0.0 % (0.0 to 43.4) | 50.0 % (17.0 to 83.0) | 50.0 % |" in text
    assert 'id="depth"' not in texts(plain, "plain", tmp_path, 1)[0]


def test_reused_teacher_columns_are_told_with_their_source(plain, tmp_path):
    assert "| 2 | 2 | 4 | 33.3 % | 12 | round 0 (2) |" in texts(plain, "plain", tmp_path)[1]
    assert "payload_reuse" not in texts(plain, "plain", tmp_path, 1)[0]


def test_repetition_stands_with_the_lengths(plain, tmp_path):
    """Responses a b a b ... of 3, 5, 7, 9, 11, 13 tokens: 0, 0, 2 of 5, 4 of 7, 6 of 9, 8 of 11 3-grams come again."""
    share = 100 * (2 / 5 + 4 / 7 + 6 / 9 + 8 / 11) / 6
    assert f"| 2 | 6 | 3 | 4 | 8 | 8.0 | 12 | 13 | 0.0 % | {share:.1f} % |" in texts(plain, "plain", tmp_path, 2)[1]


def test_hosts_and_host_paths_do_not_appear(plain, tmp_path):
    for page in texts(plain, "plain", tmp_path):
        assert "secret-host" not in page and str(plain.root) not in page and str(tmp_path) not in page


@pytest.mark.parametrize("path,shown", [
    ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"), ("./opd-models/student", "./opd-models/student"),
    ("/home/alice/models/student", "…/student"), ("/home/alice/models/student/", "…/student"),
    ("~/models/student", "…/student"), ("../../alice/student", "…/student"), ("C:\\alice\\student", "…/student")])
def test_a_models_place_loses_the_folders_of_its_host(path, shown):
    assert place_of_model(path) == shown


# --- markdown ---


def test_markdown_tables_keep_their_shape_and_hold_no_markup_of_others(hostile, tmp_path, hostile_texts):
    _, text = texts(hostile, "hostile", tmp_path)
    assert not re.search(r"<[a-zA-Z/!]", text)
    assert not set("\x00\x07\x1b\r\u202e\u2066\u200b\u2028\u2029") & set(text)
    assert not re.search(r"(?<!\\)\]\(|https?:|javascript:", text)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    assert r"\| a \| b \|↵\|---\|---\|↵\| c \| d \|" in text


@pytest.mark.parametrize("text,escaped", [
    ("a | b", r"a \| b"), ("<b>&", "&lt;b&gt;&amp;"), ("`x` *y* _z_", r"\`x\` \*y\* \_z\_"),
    ("![x](http://y)", r"\!\[x\](http&#58;//y)"), ("www.evil.example", "www&#46;evil.example"),
    ("1. one", "&#49;&#46; one"), ("30.1 %", "30.1 %"), ("- a", "&#45; a"), ("-5", "-5"),
    ("two\nlines", "two↵lines"), ("avg@k", "avg@k"),
    ("@user and a@b.example", "&#64;user and a&#64;b.example"), ("$x$ ~~y~~", r"\$x\$ \~\~y\~\~")])
def test_a_markdown_cell_is_text(text, escaped):
    assert markdown.cell(text) == escaped


# --- text ---


@pytest.mark.parametrize("text,shown", [
    ("\x1b[31m", "\\x1b[31m"), ("\u202eabc", "\\u202eabc"), ("a\x00b", "a\\x00b"), ("two\nlines", "two\nlines"),
    ("\u2028", "\\u2028"), ("\U000e0041", "\\U000e0041")])
def test_hidden_characters_become_codes(text, shown):
    assert visible(text) == shown


def test_numbers_read_well():
    assert [number(each) for each in (None, 0.5, -1.23456, 0.0000123, 12345.6, 0)] == [
        "–", "0.500", "−1.235", "1.2e−5", "12,345.600", "0.000"]
    assert [size(each) for each in (0, 999, 1500, 2.5e9)] == ["0 B", "999 B", "1.5 kB", "2.5 GB"]
    assert [seconds(each) for each in (1.25, 125, 7300)] == ["1.2 s", "2 min 05 s", "2 h 01 min"]
    assert interval(0.5, 0.25, 0.75) == "50.0 % (25.0 to 75.0)" and on_one_line("a\nb" * 50, 5) == "a↵ba↵…"


# --- summary, and the jobs ---


def test_a_summary_is_statistics_of_the_round_beside_the_one_before(plain):
    found = summary(plain, "plain", 2)
    assert found["title"] == "plain round 2"
    assert {"metric": "held-out avg@k", "round": "60.0 %", "before": "40.0 %"} in found["table"]
    assert "| held-out avg@k | 60.0 % | 40.0 % |" in found["markdown"]
    assert json.loads(json.dumps(found)) == found


def test_the_jobs_answer_in_plain_data(plain, tmp_path):
    where = {"store": str(plain.root), "run": "plain"}
    found = JOBS["summary"](silent, number=1, **where)
    assert found == summary(plain, "plain", 1)
    paths = JOBS["report"](silent, number=None, folder=str(tmp_path), **where)
    assert paths == {"html": str(tmp_path / "plain.html"), "markdown": str(tmp_path / "plain.md")}


def test_a_summary_holds_no_text_of_others(hostile, hostile_texts):
    found = json.dumps(summary(hostile, "hostile", 0), ensure_ascii=False)
    assert not [text for text in hostile_texts if text[:12] in found or visible(text[:12]) in found]
    assert re.findall(r"<[a-z]", found) == []


def test_a_summary_of_a_round_that_is_not_there_is_refused(plain):
    with pytest.raises(UserError, match="round 9 of plain is not in the store .*: it has rounds 0 to 3"):
        summary(plain, "plain", 9)
