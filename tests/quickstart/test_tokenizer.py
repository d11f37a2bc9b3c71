"""The quickstart's tokenizer: one id per digit, nothing it cannot encode, and word problems that stay short."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.quickstart.tokenizer import SPECIAL, VOCABULARY, train_tokenizer

WORD_PROBLEM = ("A grocer sells 36 oranges in the morning and twice as many in the afternoon. Each orange costs $0.75, "
                "and a third of the money goes to the farmer. How much money does the grocer keep?")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


def test_two_trainings_give_the_same_ids(tokenizer):
    assert len(tokenizer) == VOCABULARY
    assert train_tokenizer().backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [0, 1, 2]
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"


@settings(max_examples=200)
@given(text=st.text())
def test_any_text_survives_encoding(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_digits_are_tokens_of_their_own(tokenizer):
    assert tokenizer.tokenize(" has 4185+22=") == ["Ġhas", "Ġ", "4", "1", "8", "5", "+", "2", "2", "="]


def test_a_chat_ends_where_the_assistant_begins(tokenizer):
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True,
                                        return_dict=False)
    assert tokenizer.decode(ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert ids.count(1) == 2 and ids.count(2) == 1


def test_other_peoples_word_problems_take_at_most_a_token_for_two_characters(tokenizer):
    assert len(tokenizer(WORD_PROBLEM)["input_ids"]) < len(WORD_PROBLEM) / 2
