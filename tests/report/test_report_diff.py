"""`opd diff`: two rounds of which every number can be computed on paper, and what is said to mistakes."""

import json

import made_rounds as made
import pytest

from flows.cli import main
from flows.commands.diff import lines
from pipeline.report.diff import SECTIONS, diff, leaves
from pipeline.report.paired import sign_test
from storage import layout
from storage.objects import open_store
from storage.rounds import Round, create_run, put_checkpoint, read_run

RESPONSES = {1: [5, 6, 7], 2: [8]}
CONFIG = {"run": "one", "rounds": 3, "seed": 0, "threads": None, "mask": [],
          "objective": {"type": "gkd", "beta": 0.5}, "train": {"learning_rate": 1e-6, "epochs": 1}}
WEIGHTS = [1.0, 1.0, 1.0, 0.0]
REASONS = [[], [], [], ["special"]]
GRADED = {1: [True, True], 2: [True, False], 3: [False, False], 4: [False, False]}


def train(round, folder, weights: bytes, mask, steps, graded):
    """Mask, train, evaluate and commit a round whose scores lie there."""
    if not round.receipt("mask", 0):
        round.finish("mask", 0, "mask", mask, inputs={})
    checkpoint = folder / f"{round.run}-{round.number}"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(weights)
    round.finish("train", 0, "steps", steps, inputs={},
                 checkpoint=put_checkpoint(round.store, round.run, round.number + 1, checkpoint))
    round.finish("evaluate", 0, "evaluation", made.graded("student", graded), inputs={})
    for stage in layout.STAGES:
        round.commit_stage(stage)
    round.commit()


def branch(store, folder, run, config, *, weights, mask, steps, graded):
    """A branch of `one` at round 1 that shares its prompts, rollouts and scores."""
    document = {**read_run(store, "one"), "config": config,
                "branch": {"run": "one", "round": 1, "manifest": Round(store, "one", 0).manifest().id}}
    create_run(store, run, document)
    source, round = Round(store, "one", 1), Round(store, run, 1)
    round.put_plan(source.plan())
    for stage in ("prompts", "rollout", "score"):
        for receipt in source.receipts(stage):
            round.share(receipt)
    train(round, folder, weights, mask, steps, graded)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """`one`: rounds 0 and 1, round 2 in progress. Its branches at round 1: `two`, changed, and `copy`, as it was."""
    folder = tmp_path_factory.mktemp("diff")
    store = open_store(folder / "store", create=True)
    (folder / "start").mkdir()
    (folder / "start/model.safetensors").write_bytes(b"weights")
    create_run(store, "one", {
        "config": CONFIG, "versions": {"torch": "2.13"}, "sql_masks": {"easy": "SELECT 1"},
        "student": {"fingerprint": "a" * 64}, "teacher": {"fingerprint": "b" * 64},
        "student_checkpoint": put_checkpoint(store, "one", 0, folder / "start").as_dict()})
    scored = made.tokens(RESPONSES)
    mask = made.mask(scored, WEIGHTS, REASONS)
    made.commit_round(store, folder, "one", 0, [(made.rollouts(RESPONSES), scored)])
    train(made.begin_round(store, "one", 1, [(made.rollouts(RESPONSES), scored)], answers=1), folder, b"first", mask,
          made.steps(2), GRADED)
    made.begin_round(store, "one", 2, [(made.rollouts({9: [5]}), made.tokens({9: [5]}))], answers=1)
    changed = {**CONFIG, "run": "two", "rounds": 2, "objective": {"type": "lightning", "clip": 10.0},
               "mask": [{"type": "sql", "file": "easy"}]}
    branch(store, folder, "two", changed, weights=b"second",
           mask=made.mask(scored, [1.0, 0.5, 0.0, 0.0], [[], ["other"], ["special"], ["special"]]),
           steps=made.steps(2, loss=[0.25, 0.25]),
           graded={1: [True, False], 2: [False, False], 3: [True, True], 4: [True, False]})
    branch(store, folder, "copy", {**CONFIG, "run": "copy"}, weights=b"first", mask=mask, steps=made.steps(2),
           graded=GRADED)
    return store


@pytest.fixture(scope="module")
def found(store):
    return diff(store, ("one", 1), ("two", 1))


@pytest.fixture(scope="module")
def again(store):
    return diff(store, ("one", 1), ("copy", 1))


def opd(capsys, store, *arguments):
    """Exit code, stdout and stderr of `opd diff`."""
    code = main(["diff", *arguments, "--store", str(store.root)])
    out, err = capsys.readouterr()
    return code, out, err


def differing(rows):
    return {row["name"]: (row["a"], row["b"]) for row in rows if not row["same"]}


def named(rows, name):
    (row,) = (row for row in rows if row["name"] == name)
    return row


# --- what it finds ---


def test_config_keys_that_differ_are_named_and_names_of_runs_are_not(found):
    assert differing(found["config"]) == {
        "mask[0].file": (None, "easy"), "mask[0].type": (None, "sql"), "objective.beta": (0.5, None),
        "objective.clip": (None, 10.0), "objective.type": ("gkd", "lightning")}
    assert named(found["config"], "train.epochs")["same"]
    assert not {"run", "rounds", "store"} & {row["name"] for row in found["config"]}


def test_versions_models_and_inputs_of_a_branch_are_its_parents(found):
    assert not any(differing(found[section]) for section in ("versions", "models", "inputs"))
    assert named(found["models"], "teacher.fingerprint")["a"] == "b" * 64
    assert len(named(found["inputs"], "sql_masks.easy")["a"]) == 64


def test_both_begin_with_one_checkpoint_and_end_with_two(store, found):
    assert set(differing(found["checkpoints"])) == {"out.weights", "out.all files"}
    end = Round(store, "one", 0).manifest().checkpoint_out.fingerprint
    assert named(found["checkpoints"], "in.weights")["a"] == named(found["checkpoints"], "in.weights")["b"] == end


def test_shards_are_one_file_or_two_with_the_same_bytes_or_different(found, again):
    verdicts = {row["name"]: [key for key in ("same_file", "same_bytes", "different") if row[key]]
                for row in found["shards"]}
    assert verdicts == {"prompts": ["same_file"], "rollout": ["same_file"], "score": ["same_file"],
                        "mask": ["different"], "train": ["different"], "evaluate": ["different"]}
    shared = {row["name"]: row for row in again["shards"]}
    assert shared["score"]["same_file"] == shared["mask"]["same_bytes"] == shared["train"]["same_bytes"] == [0]


def test_masks_are_shares_of_tokens_and_a_reason_that_was_not_given_is_zero(found):
    """4 tokens: `one` masks 1 of them; `two` masks 2 and halves another."""
    assert [(row["name"], row["a"], row["b"], row["difference"]) for row in found["masks"]] == [
        ("weight 0", 0.25, 0.5, 0.25), ("reason special", 0.25, 0.5, 0.25), ("reason other", 0.0, 0.25, 0.25)]


def test_metrics_are_the_columns_of_rounds_with_their_difference(found):
    assert named(found["metrics"], "loss") == {"name": "loss", "a": 0.5, "b": 0.25, "same": False, "difference": -0.25}
    assert named(found["metrics"], "tokens")["difference"] == 0
    assert not {"run", "round", "manifest_id"} & {row["name"] for row in found["metrics"]}


def test_accuracy_has_its_interval_and_the_problems_are_compared_one_by_one(found):
    """A has 3 of 8 answers right, B 4; shares by problem 1, .5, 0, 0 against .5, 0, 1, .5: A is higher on two, B on
    two, and 6 + 4 + 1 of 16 ways to fall are at most that even on one side."""
    (row,) = found["evaluation"]
    assert (row["name"], row["role"], row["a"]["avg_at_k"], row["b"]["avg_at_k"]) == ("sums", "student", 0.375, 0.5)
    assert row["a"]["avg_at_k_low"] < 0.375 < row["a"]["avg_at_k_high"] and row["difference"] == 0.125
    assert found["paired"] == [{
        "name": "sums", "role": "student", "problems": 4, "both": 1, "neither": 0, "only_a": [2], "only_b": [3, 4],
        "a_higher": 2, "b_higher": 2, "difference": 0.125, "chance": 1.0, "same": False}]


def test_the_sign_test_counts_flips_of_fair_coins():
    """5 of 5: 2 / 32; 1 of 5 or less: 2 (1 + 5) / 32; no flips say nothing."""
    assert [sign_test(0, 5), sign_test(4, 1), sign_test(0, 0), sign_test(3, 3)] == [0.0625, 0.375, 1.0, 1.0]


def test_the_plan_counts_what_both_rounds_share(store, found):
    assert not differing(found["plan"]) and named(found["plan"], "prompts")["shared"] == 1
    later = diff(store, ("one", 0), ("one", 1))["plan"]
    assert named(later, "evaluated problems") == {"name": "evaluated problems", "a": 0, "b": 1, "same": False,
                                                  "shared": 0}


def test_a_round_played_again_to_the_same_bytes_is_the_same(store, again, capsys):
    assert again["same"] and not any(differing(again[section]) for section in SECTIONS)
    code, out, _ = opd(capsys, store, "one:1", "copy:1", "--exit-code")
    assert code == 0 and out.splitlines()[-1] == f"the same: {', '.join(SECTIONS)}"
    assert opd(capsys, store, "one:1", "two:1", "--exit-code", "--json")[0] == 1


def test_a_branchs_first_round_is_its_parents_with_the_config_that_made_it(store):
    found = diff(store, ("two", 0), ("one", 1))
    assert (found["a"]["run"], found["a"]["owner"]) == ("two", "one") and not differing(found["config"])


def test_a_round_in_progress_has_dashes_where_nothing_is_yet(store, capsys):
    found = diff(store, ("one", 1), ("one", 2))
    assert not found["b"]["committed"] and found["b"]["manifest"] is None
    assert named(found["metrics"], "loss")["b"] is None and named(found["metrics"], "loss")["difference"] is None
    assert named(found["checkpoints"], "out.weights")["b"] is None
    assert [(row["b"], row["b_planned"], row["only_a"]) for row in found["shards"]] == [
        (1, 1, []), (1, 1, []), (1, 1, []), (0, 1, [0]), (0, 1, [0]), (0, 1, [0])]
    assert named(found["masks"], "weight 0")["b"] is None
    (row,) = found["evaluation"]
    assert row["b"] is None and row["difference"] is None and found["paired"] == []
    code, out, _ = opd(capsys, store, "one:1", "one:2")
    assert code == 0 and "B  one round 2  in progress" in out and "–" in out


@pytest.mark.parametrize("left,right,expected", [
    ({"a": {"b": 1}}, {"a": None}, [("a.b", 1, None)]),
    ({"a": [{"b": 1}]}, {"a": []}, [("a[0].b", 1, None)]),
    ({"a": ["x", "y"]}, {"a": ["x"]}, [("a", ["x", "y"], ["x"])]),
    ({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}]}, [("a[0].b", 1, 1), ("a[1].b", 2, None)]),
    ({"a": {"b": 1}}, {"a": 2}, [("a", {"b": 1}, 2)]), (None, None, [("", None, None)])])
def test_leaves_of_two_documents(left, right, expected):
    assert list(leaves(left, right)) == expected


# --- what it prints ---


def test_json_is_one_object_with_everything(store, found, capsys):
    code, out, _ = opd(capsys, store, "one:1", "two:1", "--json")
    assert code == 0 and json.loads(out) == found


@pytest.mark.parametrize("width", [80, 120, 200])
def test_people_see_what_differs_and_all_on_request(found, width):
    short, long = ("\n".join(lines(found, width, everything=each)) for each in (False, True))
    assert "objective.type" in short and "train.epochs" not in short and "train.epochs" in long
    assert short.endswith("\n\nthe same: versions, models, inputs, plan") and "the same: versions" in long
    assert "0.375 (" in short and "0.500 (" in short and "#0" in short
    assert max(map(len, [*short.split("\n"), *long.split("\n")])) <= width


def test_text_of_models_and_masks_is_shown_and_not_obeyed(tmp_path, capsys):
    store = open_store(tmp_path / "store", create=True)
    made.start_run(store, tmp_path, "run")
    scored = made.tokens(RESPONSES)
    hostile = ["\x1b[31mred\u202e", "[bold]x[/bold]\nline", "para\u2029graph", "x" * 5000]
    for number, reasons in enumerate(([[text] for text in hostile], REASONS)):
        made.commit_round(store, tmp_path, "run", number, [(made.rollouts(RESPONSES), scored)],
                          [made.mask(scored, WEIGHTS, reasons)],
                          answers=[made.graded("student", {1: [bool(number)]}, task="\x1b]0;title\x07[i]sums")])
    _, out, _ = opd(capsys, store, "run:0", "run:1")
    assert not set("\x1b\x07\u202e\u2029") & set(out) and "\\x1b[31mred" in out and "[bold]x[/bold]↵line" in out
    assert "\\x1b]0;title\\x07[i]sums" in "\n".join(lines(diff(store, ("run", 0), ("run", 1)), 200))
    assert max(map(len, out.splitlines())) <= 80 and out.count("x" * 20) < 30


# --- mistakes ---


@pytest.mark.parametrize("places,line", [
    (("on:1", "one:1"), "opd: run on is not in the store {url}: did you mean one?"),
    (("zebra:1", "one:1"), "opd: run zebra is not in the store {url}: it has copy, one, two"),
    (("one:1", "one:7"), "opd: round 7 of one is not in the store {url}: it has rounds 0 to 2"),
    (("one", "one:1"), "opd: 'one' is not RUN:ROUND: name a run and one of its rounds, as in gsm8k:3"),
    (("one:-1", "one:1"), "opd: 'one:-1' is not RUN:ROUND: name a run and one of its rounds, as in gsm8k:3"),
    (("../one:1", "one:1"), "opd: run id '../one' is not clean: use 1 to 64 of a-z 0-9 . _ - and start with a letter "
                            "or digit"),
    (("one:1", "one:1"), "opd: one:1 is the same round twice: name two, as in one:1 one:2"),
    (("one:0", "two:0"), "opd: one:0 and two:0 are the same round, one's: two has its own rounds from 1 on; name one "
                         "of these")])
def test_a_mistake_is_one_line(store, capsys, places, line):
    code, out, err = opd(capsys, store, *places)
    assert (code, out, err) == (2, "", line.format(url=store.url) + "\n")
