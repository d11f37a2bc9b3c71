import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import documents
from storage.errors import IntegrityError

JSON = st.recursive(st.none() | st.booleans() | st.integers(-2**63, 2**63) | st.floats(allow_nan=False,
                    allow_infinity=False) | st.text(st.characters(exclude_categories=["Cs"])),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
                    max_leaves=8)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("abc"), JSON, max_size=4))
def test_a_document_comes_back_and_has_one_form(document):
    assert documents.unseal(documents.seal(document)) == document
    assert documents.dump(dict(reversed(document.items()))) == documents.dump(document)


def test_every_flipped_bit_of_a_sealed_document_is_found():
    data = documents.seal({"a": 1, "b": {"text": "é x"}, "c": [1.5, None, True]})
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            documents.unseal(bytes(flipped))


def test_every_truncation_is_found_and_called_so():
    data = documents.seal({"a": {"b": 1}, "c": "}\n"})
    assert all(_kind(data[:length]) == "truncated" for length in range(1, len(data)))
    assert _kind(b"") == "empty"


def _kind(data: bytes) -> str:
    with pytest.raises(IntegrityError) as error:
        documents.unseal(data)
    return error.value.kind


@pytest.mark.parametrize("data, kind", [
    (b'{"a":NaN}\n', "unparseable"), (b'{"a":}\n', "unparseable"), (b"\xff}\n", "unparseable"),
    (b"[" * 100_000 + b"}\n", "unparseable"), (b'{"a":1}\n', "foreign"), (b"\x00" * 9, "truncated"),
])
def test_what_is_not_a_sealed_document_is_refused(data, kind):
    assert _kind(data) == kind


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_not_written(value):
    with pytest.raises(ValueError):
        documents.dump({"a": value})


def test_differing_keys_are_dotted_and_sorted():
    left = {"a": {"x": 1, "y": 2}, "b": [1], "c": 1}
    right = {"a": {"x": 1, "y": 3}, "b": [2], "d": 1}
    assert documents.differing_keys(left, right) == ["a.y", "b", "c", "d"]
    assert documents.differing_keys({"a": 1}, {"a": True}) == ["a"]
