"""Special tokens, the detector, and putting masks together: answers by hand."""

import math
import sys

import made_rounds as made
import numpy as np
import pytest
import tiny

from pipeline.config.model import Detector
from pipeline.mask import detector, special_tokens
from pipeline.mask.marks import Marks, counts, mask_table
from storage.errors import UserError

RESPONSES = {1: [5, 9, 9, 6], 2: [9, 5], 3: [6]}


def test_weights_multiply_and_reasons_collect_in_the_order_of_the_masks():
    tokens = made.tokens(RESPONSES)
    late = Marks(np.array([6, 1]), np.array([0.5, 0.25]), np.array([0, 0]), ["late"])
    odd = Marks(np.array([1, 3, 1]), np.array([0.5, 0.0, 2.0]), np.array([0, 1, 1]), ["odd", "even"])
    table = mask_table(tokens, [late, odd])
    assert table["weight"].to_pylist() == [1, 0.25, 1, 0, 1, 1, 0.5]
    assert table["reasons"].to_pylist() == [[], ["late", "odd", "even"], [], ["even"], [], [], ["late"]]
    assert table["rollout_id"] == tokens["rollout_id"] and table["position"] == tokens["position"]
    assert counts(table) == {"tokens": 7, "masked": 1, "reasons": {"late": 2, "odd": 1, "even": 2}}


def test_without_masks_every_token_has_weight_one():
    table = mask_table(made.tokens(RESPONSES), [])
    assert table["weight"].to_pylist() == [1.0] * 7 and table["reasons"].to_pylist() == [[]] * 7


def test_a_shard_without_tokens_has_an_empty_mask():
    tokens = made.tokens(RESPONSES).slice(0, 0)
    assert mask_table(tokens, [special_tokens.mark(tokens, {"<": 9}, "first")]).num_rows == 0


def test_weights_that_overflow_are_refused():
    heavy = Marks(np.array([0]), np.array([1e30]), np.array([0]), ["heavy"])
    with pytest.raises(UserError, match="multiply to more than float32"):
        mask_table(made.tokens(RESPONSES), [heavy, heavy])


def test_the_first_occurrence_per_response_of_each_listed_token_is_masked():
    table = mask_table(made.tokens(RESPONSES), [special_tokens.mark(made.tokens(RESPONSES), {"a": 9, "b": 6}, "first")])
    assert table["weight"].to_pylist() == [1, 0, 1, 0, 0, 1, 0]
    assert table["reasons"].to_pylist()[1:4] == [["special_token:a"], [], ["special_token:b"]]


def test_all_occurrences_are_masked_on_request():
    table = mask_table(made.tokens(RESPONSES), [special_tokens.mark(made.tokens(RESPONSES), {"a": 9}, "all")])
    assert table["weight"].to_pylist() == [1, 0, 0, 1, 0, 1, 1]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.byte_tokenizer(["<think> the end", "the the the"])


def test_a_text_is_an_entry_of_the_vocabulary_or_encodes_to_one_token(tokenizer):
    ids = special_tokens.resolve(["<|im_end|>", "<", " "], tokenizer)
    assert [tokenizer.decode([ids[text]]) for text in ids] == ["<|im_end|>", "<", " "]


def test_a_text_of_several_tokens_is_named(tokenizer):
    with pytest.raises(UserError, match=r"'zebra' is 5 tokens of the student's tokenizer, not one"):
        special_tokens.resolve(["<", "zebra"], tokenizer)
    with pytest.raises(UserError, match="'' is 0 tokens"):
        special_tokens.resolve([""], tokenizer)


def detectable():
    """Token 9 is flagged; 8 is too rare, 7 not bad enough, 6 not sure enough; 9's gap is -12 on average only."""
    sure, unsure = math.log(0.9), math.log(0.4)
    rows = ([(9, sure, sure - 2 - 20 * (index % 2)) for index in range(8)] + [(8, sure, sure - 30)] * 7
            + [(7, sure, sure - 9.9)] * 8 + [(6, unsure, unsure - 12)] * 8)
    responses = {1: [token for token, _, _ in rows[:16]], 2: [token for token, _, _ in rows[16:]]}
    return made.tokens(responses, student_log_prob=[row[1] for row in rows], teacher_log_prob=[row[2] for row in rows])


def test_the_detector_flags_what_the_teacher_finds_impossible_and_the_student_certain():
    tokens = detectable()
    assert detector.flagged(tokens, Detector()).tolist() == [9]
    assert detector.flagged(tokens, Detector(min_count=7)).tolist() == [8, 9]
    assert detector.flagged(tokens, Detector(max_log_ratio=-9)).tolist() == [7, 9]
    assert detector.flagged(tokens, Detector(min_student_prob=0.3)).tolist() == [6, 9]
    assert detector.flagged(tokens, Detector(min_student_prob=0.95)).tolist() == []


def test_the_detector_masks_every_occurrence_of_a_flagged_token():
    tokens = detectable()
    marks = detector.mark(tokens, detector.flagged(tokens, Detector(min_count=7)))
    table = mask_table(tokens, [marks])
    assert counts(table) == {"tokens": 31, "masked": 15, "reasons": {"detector:9": 8, "detector:8": 7}}


def test_an_empty_round_has_nothing_to_detect():
    tokens = detectable().slice(0, 0)
    assert mask_table(tokens, [detector.mark(tokens, detector.flagged(tokens, Detector()))]).num_rows == 0


def test_list_and_detector_need_no_duckdb(monkeypatch, tokenizer):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    tokens = detectable()
    marks = [special_tokens.mark(tokens, special_tokens.resolve(["<"], tokenizer), "first"),
             detector.mark(tokens, detector.flagged(tokens, Detector()))]
    assert counts(mask_table(tokens, marks))["masked"] == 8
