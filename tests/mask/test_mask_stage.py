"""The mask stage on a stored round: what is written, noted and named as its input."""

import dataclasses

import made_rounds as made
import pytest
import tiny

from pipeline.config.model import Detector, RunConfig, SpecialTokens, SqlMask
from pipeline.context import RoundContext
from pipeline.mask import stage
from storage import schemas
from storage.errors import UserError
from storage.objects import open_store
from storage.rounds import Round
from storage.snapshot import take_snapshot

MINE = "SELECT rollout_id, position, 0.5 AS weight, 'odd' AS reason FROM tokens WHERE position % 2 = 1"
FIRST, SECOND = {1: [60, 61, 60], 2: [62, 63]}, {3: [60, 64, 63]}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    tiny.byte_tokenizer().save_pretrained(folder)
    return folder


def context(folder, student, masks, number=0, document=None):
    config = RunConfig.model_validate({"run": "made", "student": {"path": str(student)}, "mask": masks,
                                       "teacher": {"path": str(student)}, "prompts": {"source": {"type": "generated"}}})
    store = open_store(folder / "store")
    return RoundContext(store, "made", number, config, {"student": {"revision": None}, **(document or {})},
                        Round(store, "made", number))


def store_round(folder, parts, number=0):
    store = open_store(folder / "store", create=True)
    if number == 0:
        tiny.byte_tokenizer().save_pretrained(folder / "checkpoint-made")
        made.start_run(store, folder)
    return made.begin_round(store, "made", number, parts)


def scored(responses, **changes):
    return made.rollouts(responses), made.tokens(responses, **changes)


def rare(responses, tokens=(63,)):
    """Scores in which the teacher has never heard of `tokens`."""
    ids = [token for response in responses.values() for token in response]
    return scored(responses, teacher_topk_ids=[[200 if token in tokens else token, 101, 102, 103] for token in ids],
                  teacher_log_prob=[-12.0 if token in tokens else -0.6931472 for token in ids],
                  student_log_prob=[-0.1] * len(ids))


def test_a_shard_is_masked_noted_and_bound_to_its_inputs(tmp_path, student):
    round = store_round(tmp_path, [rare(FIRST), rare(SECOND)])
    masks = [SpecialTokens(tokens=["<"], occurrences="first"), Detector(min_count=2), SqlMask(file="mine.sql")]
    here = context(tmp_path, student, masks, document={"sql_masks": {"mine.sql": MINE}})
    token_id = stage.special_tokens.resolve(["<"], tiny.byte_tokenizer())["<"]
    receipts = [stage.run(here, shard) for shard in (0, 1)]
    table = round.read("mask")
    assert table.schema.equals(schemas.MASK) or table.column_names == schemas.MASK.names
    assert table["weight"].to_pylist() == [1, 0.5, 1, 1, 0, 1, 0.5, 0]
    assert table["reasons"].to_pylist() == [[], ["odd"], [], [], ["detector:63", "odd"], [], ["odd"], ["detector:63"]]
    facts = receipts[0].facts
    assert (facts["tokens"], facts["masked"], facts["reasons"]) == (5, 1, {"odd": 2, "detector:63": 1})
    assert facts["masks"]["0"] == {"type": "special_tokens", "token_ids": {"<": token_id}}
    assert facts["masks"]["1"] == {"type": "detector", "token_ids": [63]}
    assert facts["masks"]["2"] == {"type": "sql", "file": "mine.sql", "sql": MINE}
    assert receipts[0].inputs == round.input_files("score")


def test_the_listed_token_is_masked_once_per_response(tmp_path, student):
    token_id = stage.special_tokens.resolve(["<"], tiny.byte_tokenizer())["<"]
    round = store_round(tmp_path, [scored({1: [token_id, 5, token_id], 2: [5, token_id]})])
    receipt = stage.run(context(tmp_path, student, [SpecialTokens(tokens=["<"])]), 0)
    assert round.read("mask")["weight"].to_pylist() == [0, 1, 1, 1, 0]
    assert receipt.facts["reasons"] == {"special_token:<": 2} and receipt.inputs == round.input_files("score", 0)


def test_history_that_was_read_is_among_the_inputs(tmp_path, student):
    eight = {1: [63] * 8}
    store = open_store(tmp_path / "store", create=True)
    made.start_run(store, tmp_path)
    for number in (0, 1):
        made.commit_round(store, tmp_path, "made", number, [rare(eight)])
    round = store_round(tmp_path, [rare({2: [63, 5]})], number=2)
    receipt = stage.run(context(tmp_path, student, [SqlMask(file="flagged_before")], number=2), 0)
    assert round.read("mask")["weight"].to_pylist() == [0, 1]
    earlier = [file.key for number in (0, 1) for file in take_snapshot(store).files("made", number, "tokens")]
    assert set(receipt.inputs) == set(earlier) | set(round.input_files("score"))


def test_masks_of_an_earlier_round_do_not_see_later_ones(tmp_path, student):
    store = open_store(tmp_path / "store", create=True)
    made.start_run(store, tmp_path)
    for number in (0, 1, 2):
        made.commit_round(store, tmp_path, "made", number, [rare({1: [63] * 8})])
    seen = "SELECT rollout_id, position, 0.0 AS weight, 'r' || (SELECT max(round) FROM history) AS reason FROM tokens"
    here = context(tmp_path, student, [], number=2, document={"sql_masks": {"m.sql": seen}})
    here = dataclasses.replace(here, config=here.config.model_copy(update={"mask": [SqlMask(file="m.sql")]}))
    assert [mask.marks.names for mask in stage.evaluated(here)] == [["r1"]]


def test_the_same_round_gives_the_same_bytes(tmp_path, student):
    files = []
    for copy in ("a", "b"):
        (tmp_path / copy).mkdir()
        store_round(tmp_path / copy, [rare(FIRST), rare(SECOND)])
        masks = [Detector(min_count=2), SqlMask(file="teacher_entropy"), SqlMask(file="positions_after")]
        files.append([stage.run(context(tmp_path / copy, student, masks), shard).file.sha256 for shard in (0, 1)])
    assert files[0] == files[1]


def test_a_silent_teacher_stops_before_the_mask_is_written(tmp_path, student):
    round = store_round(tmp_path, [scored(FIRST, teacher_log_prob=[0.0] * 5)])
    with pytest.raises(UserError, match="fail the check all_zeros"):
        stage.run(context(tmp_path, student, []), 0)
    assert round.pending("mask") == [0]


def test_a_silent_teacher_of_another_shard_stops_this_one_too(tmp_path, student):
    round = store_round(tmp_path, [scored(FIRST), scored(SECOND, teacher_log_prob=[0.0] * 3)])
    with pytest.raises(UserError, match="scores of round 0 of made fail the check all_zeros"):
        stage.run(context(tmp_path, student, []), 0)
    assert round.pending("mask") == [0, 1]


def test_four_shards_cost_one_evaluation(tmp_path, student):
    round = store_round(tmp_path, [rare({4 * shard + each: [60, 63] for each in range(4)}) for shard in range(4)])
    masks = [SpecialTokens(tokens=["<"]), Detector(min_count=2), SqlMask(file="truncated")]
    called = []
    before = stage._evaluated.cache_info()
    for shard in range(4):  # contexts of their own, as four calls of a child process may have
        here = context(tmp_path, student, masks)
        stage.run(dataclasses.replace(here, progress=lambda what, done, total: called.append(what)), shard)
    after = stage._evaluated.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 3)
    assert called == ["check scores", "mask special_tokens", "mask detector", "mask sql"]
    assert round.pending("mask") == [] and round.read("mask").num_rows == 32


def test_other_masks_over_the_same_round_are_evaluated_again(tmp_path, student):
    store_round(tmp_path, [scored(FIRST)])
    for minimum in (2, 3):
        before = stage._evaluated.cache_info().misses
        stage.evaluated(context(tmp_path, student, [Detector(min_count=minimum)]))
        assert stage._evaluated.cache_info().misses == before + 1


def test_a_mask_file_that_was_edited_since_the_run_began_is_refused(tmp_path, student):
    round = store_round(tmp_path, [scored(FIRST)])
    file = tmp_path / "mine.sql"
    file.write_text(MINE)
    here = context(tmp_path, student, [SqlMask(file=str(file))], document={"sql_masks": {str(file): MINE}})
    file.write_text(MINE.replace("0.5", "0.25"))
    with pytest.raises(UserError, match="mine.sql changed since the run began: use another run id, or restore it"):
        stage.run(here, 0)
    assert round.pending("mask") == [0]
    file.unlink()  # moved to another machine: what was recorded runs
    assert stage.run(here, 0).facts["reasons"] == {"odd": 2}


def test_a_mask_that_fails_writes_nothing(tmp_path, student):
    round = store_round(tmp_path, [scored(FIRST)])
    bad = MINE.replace("0.5", "-1")
    with pytest.raises(UserError, match="mask bad.sql: weight -1.0 at rollout 1 position 1"):
        stage.run(context(tmp_path, student, [SqlMask(file="bad.sql")], document={"sql_masks": {"bad.sql": bad}}), 0)
    assert round.pending("mask") == [0]


def test_a_config_is_checked_before_the_run_begins(tmp_path, student):
    tokenizer = tiny.byte_tokenizer()
    (tmp_path / "mine.sql").write_text(MINE)
    mine = SqlMask(file=str(tmp_path / "mine.sql"))
    assert stage.check_config([SpecialTokens(tokens=["<"]), mine], tokenizer) == {mine.file: MINE}
    with pytest.raises(UserError, match="'think' is 5 tokens"):
        stage.check_config([SpecialTokens()], tokenizer)
    (tmp_path / "mine.sql").write_text(MINE + " AND random() < 0.5")
    with pytest.raises(UserError, match=r"random\(\) is refused"):
        stage.check_config([mine], tokenizer)


def test_the_docstring_shows_the_command():
    assert "opd mask --run R --round 3 --shard 7" in stage.__doc__
