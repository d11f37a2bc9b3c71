"""List columns as flat arrays, against Python lists."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ragged import Ragged, Spans, ranges
from storage import schemas

LISTS = st.lists(st.lists(st.integers(-9, 9), max_size=5), max_size=8)
SPANS = st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=4), max_size=6)


def column(rows: list, kind: pa.DataType, cut: int) -> pa.ChunkedArray:
    """`rows` in two chunks, each a slice out of a longer array."""
    longer = pa.array([*rows, *rows], kind)
    return pa.chunked_array([longer.slice(0, cut), longer.slice(len(rows) + cut, len(rows) - cut)])


def test_ranges_are_the_concatenated_ranges():
    assert ranges(np.array([5, 0, 7]), np.array([2, 0, 3])).tolist() == [5, 6, 7, 8, 9]


@settings(max_examples=80, deadline=None)
@given(LISTS, st.data())
def test_a_list_column_reads_as_its_lists_however_it_is_chunked(lists, data):
    ragged = Ragged.of(column(lists, schemas.TOKEN_LIST, data.draw(st.integers(0, len(lists)))))
    assert [ragged[i].tolist() for i in range(len(ragged))] == lists
    assert ragged.values.tolist() == sum(lists, []) and ragged.lengths.tolist() == [len(each) for each in lists]


@settings(max_examples=150, deadline=None)
@given(SPANS, st.data())
def test_spans_are_the_positions_inside_them_or_misfits(lists, data):
    rows = [[{"start": start, "end": end} for start, end in spans] for spans in lists]
    lengths = np.array([data.draw(st.integers(0, 7)) for _ in lists], dtype=np.int64)
    spans = Spans.of(column(rows, schemas.SPAN_LIST, data.draw(st.integers(0, len(rows)))))
    edges = [[0, *(edge for span in each for edge in span), length] for each, length in zip(lists, lengths)]
    misfits = [each != sorted(each) for each in edges]
    assert spans.misfits(lengths).tolist() == misfits
    if not any(misfits):
        inside = [(m, t) for m, each in enumerate(lists) for start, end in each for t in range(start, end)]
        assert list(zip(*(array.tolist() for array in spans.positions()))) == inside
