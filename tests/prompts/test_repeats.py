"""Repeated rows are found exactly, in nested columns too."""

import json

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prompts.repeats import first_rows

TEXT = st.sampled_from(["", "a", "b", None])
MESSAGE = st.fixed_dictionaries({"role": TEXT, "content": TEXT})
ROW = st.fixed_dictionaries({"prompt": st.one_of(st.none(), st.lists(st.one_of(st.none(), MESSAGE), max_size=3)),
                             "reward": st.one_of(st.none(), st.fixed_dictionaries({"truth": TEXT})),
                             "number": st.sampled_from([0, 1, None])})
SCHEMA = pa.schema([("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
                    ("reward", pa.struct([("truth", pa.string())])), ("number", pa.int64())])


@settings(max_examples=300, deadline=None)
@given(st.lists(ROW, max_size=30), st.integers(0, 5))
def test_the_first_of_equal_rows_stays_and_every_other_row_goes(rows, skipped):
    table = pa.concat_tables([pa.Table.from_pylist(part, SCHEMA) for part in (rows[:7], rows[7:])]).slice(skipped)
    rows, seen, expected = rows[skipped:], set(), []
    for number, row in enumerate(rows):
        if json.dumps(row, sort_keys=True) not in seen:
            expected.append(number)
        seen.add(json.dumps(row, sort_keys=True))
    assert first_rows(table).tolist() == expected
