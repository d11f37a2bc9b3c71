import json

import pytest
from tokenizers import AddedToken

from pipeline.models import template_hash, tokenizer_hash, vocabulary_agreement
from storage.errors import UserError
from tests.tiny import byte_tokenizer

TEXT = ["three blind mice " * 20, "see how they run " * 20]


def with_rules(change):
    """The trained tokenizer with its rules changed as JSON."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    document = json.loads(byte_tokenizer(TEXT).backend_tokenizer.to_str())
    change(document)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(document)), eos_token="<|im_end|>",
                                   pad_token="<|endoftext|>", chat_template=byte_tokenizer().chat_template)


def test_equal_tokenizers_share_every_id_without_a_warning():
    agreement = vocabulary_agreement(byte_tokenizer(TEXT), byte_tokenizer(TEXT), student_rows=320, teacher_rows=320)
    assert (agreement.shared, agreement.warnings) == (267, [])


def test_a_teacher_with_other_ids_is_refused_by_the_first_of_them():
    def swap(document):
        vocab = document["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]

    with pytest.raises(UserError, match="the teacher's token 67 is 'b', the student's is 'a'"):
        vocabulary_agreement(byte_tokenizer(TEXT), with_rules(swap))


def test_a_teacher_with_other_merges_is_refused():
    with pytest.raises(UserError, match="merge rules differ"):
        vocabulary_agreement(byte_tokenizer(TEXT), with_rules(lambda document: document["model"]["merges"].reverse()))


def test_more_tokens_on_one_side_are_cut_off_with_a_warning():
    teacher = byte_tokenizer(TEXT)
    teacher.add_tokens([AddedToken("<think>", special=True)])
    agreement = vocabulary_agreement(byte_tokenizer(TEXT), teacher)
    assert agreement.shared == 267
    assert agreement.warnings == ["tokens: 267 for the student, 268 for the teacher"]


def test_other_roles_templates_and_padding_are_warned_about():
    teacher = byte_tokenizer(TEXT)
    teacher.eos_token, teacher.chat_template = "<|endoftext|>", None
    agreement = vocabulary_agreement(byte_tokenizer(TEXT), teacher, student_rows=320, teacher_rows=384)
    assert agreement.shared == 267
    assert [warning.split(":")[0] for warning in agreement.warnings] == ["EOS", "chat template", "rows of the head"]


def test_a_head_smaller_than_its_tokenizer_is_refused():
    with pytest.raises(UserError, match="the teacher's head has 100 rows for a tokenizer of 267 tokens"):
        vocabulary_agreement(byte_tokenizer(TEXT), byte_tokenizer(TEXT), teacher_rows=100)


def test_hashes_follow_content():
    plain, trained = byte_tokenizer(), byte_tokenizer(TEXT)
    assert tokenizer_hash(trained) == tokenizer_hash(byte_tokenizer(TEXT)) != tokenizer_hash(plain)
    assert template_hash(plain) == template_hash(trained)
    plain.chat_template = plain.chat_template + " "
    assert template_hash(plain) != template_hash(trained)
    plain.chat_template = None
    assert template_hash(plain) is None


def test_truncation_set_by_an_earlier_call_does_not_change_the_hash():
    tokenizer = byte_tokenizer(TEXT)
    before = tokenizer_hash(tokenizer)
    tokenizer("three blind mice", truncation=True, max_length=3, padding="max_length")
    assert tokenizer_hash(tokenizer) == before
