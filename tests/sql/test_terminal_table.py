"""What a person sees: nothing wider than the terminal, nothing that the terminal would obey."""

import unicodedata

import made_rounds as made
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from flows.terminal_table import table_lines
from storage import catalog, sqlfiles
from storage.objects import open_store
from storage.snapshot import take_snapshot

FILES = [(kind, name) for kind in ("views", "reports") for name in sqlfiles.names(kind)]


def lines(rows: list[dict], width: int | None, schema=None) -> list[str]:
    return table_lines(pa.Table.from_pylist(rows, schema), width)[0]


def test_a_table_that_fits_is_printed_as_it_is():
    assert lines([{"round": 0, "mean_gap": -0.5, "reason": "late"}, {"round": 10, "mean_gap": None, "reason": None}],
                 80) == ["round  mean_gap  reason",
                         "─────  ────────  ──────",
                         "    0   -0.5000  late",
                         "   10      NULL  NULL"]


def test_small_floats_are_not_rounded_to_nothing_and_a_column_has_one_form():
    assert [line.strip() for line in lines([{"rate": 1e-6}, {"rate": 0.5}], 80)[2:]] == ["1e-06", "0.5"]
    assert [line.strip() for line in lines([{"gap": 0.25}, {"gap": 0.0}, {"gap": -12.0}], 80)[2:]] == [
        "0.2500", "0.0000", "-12.0000"]


def test_lists_are_shortened_and_tell_how_many_more_there_are():
    assert lines([{"ids": list(range(32))}], 80)[2] == "[0, 1, 2, 3, +28]"
    assert lines([{"ids": list(range(32))}], None)[2] == "[0, 1, 2, 3, +28]"
    assert lines([{"turns": [{"start": 0, "end": 5}], "reasons": ["a", None], "on": True}], 80)[2] == (
        '[{start: 0, end: 5}]  ["a", NULL]  true')


def test_a_wide_table_breaks_its_headers_before_anything_else():
    row = {"run": "r", "overlap_mass_student": 0.5, "overlap_mass_teacher": 0.25}
    assert lines([row, row], 30) == [
        "     overlap_  overlap_",
        "        mass_     mass_",
        "run   student   teacher",
        "───  ────────  ────────",
        "r      0.5000    0.2500",
        "r      0.5000    0.2500"]


def test_then_texts_are_cut_and_numbers_never():
    rows = [{"rollout_id": 7_000_000_000_000_000_000 + row, "text": "word " * 20} for row in range(2)]
    assert lines(rows, 40) == [
        "         rollout_id  text",
        "───────────────────  ───────────────────",
        "7000000000000000000  word word word wor…",
        "7000000000000000001  word word word wor…"]


def test_a_table_too_wide_for_that_is_turned():
    rows = [{f"column_{place}": place + 10 * row for place in range(8)} for row in range(9)]
    found = lines(rows, 24)
    assert found[:3] == ["─" * 23, "column_0  0  10  20  30", "column_1  1  11  21  31"]
    assert found[9:11] == ["─" * 24, "column_0  40  50  60  70"]
    assert len(found) == 3 * 9


def test_a_row_alone_shows_its_texts_whole_and_with_their_lines():
    assert lines([{"n": 1, "text": "first\n  second"}], None) == ["n     1", "text  first", "        second"]
    assert lines([{"n": 1, "text": "abcdefghij" * 4}], 22) == [
        "n     1", "text  abcdefghijabcdef", "      ghijabcdefghijab", "      cdefghij"]


def test_an_empty_table_names_its_columns():
    assert lines([], 80, pa.schema([("run", pa.string()), ("round", pa.int32())])) == ["run, round", "no rows"]


def test_wide_characters_take_two_places():
    assert lines([{"text": "日本", "n": 1}, {"text": "abcd", "n": 2}], 80)[2:] == ["日本  1", "abcd  2"]


def test_no_more_rows_than_a_person_reads():
    table = pa.table({"n": range(1000)})
    assert table_lines(table, 80)[1] == 200
    wide = pa.table({f"column_{place}": range(1000) for place in range(40)})
    found, rows = table_lines(wide, 80)  # 41 lines a block; 69 columns hold 17 numbers of 2 digits, or 14 of 3
    assert (rows, len(found)) == (20 + 4 * 17 + 16 + 2 * 14, 8 * 41)


@pytest.fixture(scope="module")
def connection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    store = open_store(folder / "store", create=True)
    made.start_run(store, folder, tokenizer='{"model": {"type": "BPE", "vocab": {"\\u001b[2Jthe": 5}}}')
    responses = {1: [5, 6, 7], 2: [5, 5]}
    scored = made.tokens(responses)
    text = "A line\nand \x1b[31mred \u202e bidi " * 40
    made.commit_round(store, folder, "made", 0, [(made.rollouts(responses, response_text=[text] * 2), scored)],
                      answers=[made.graded("student", {7: [True, False]})])
    return catalog.connect(store, take_snapshot(store))


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("kind, name", FILES)
def test_every_view_and_report_fits_into_a_terminal(connection, kind, name, width):
    file = sqlfiles.load(kind, name)
    sql = f"FROM {name}" if kind == "views" else file.text
    table = catalog.query(connection, sql, dict.fromkeys(file.parameters, 1))
    found, rows = table_lines(table, width)
    assert rows == table.num_rows
    assert max(map(cell_len, found)) <= width
    assert not any(hidden(line) for line in found)


def hidden(text: str) -> bool:
    return any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co") for character in text)


def test_an_id_is_never_cut_it_is_typed_into_the_next_query():
    table = pa.table({"rollout_id": pa.array([4230830457255123456, 9], pa.int64()),
                      **{f"text_{n}": ["long " * 30] * 2 for n in range(6)}})
    found, _ = table_lines(table, 60)
    assert any("4230830457255123456" in line for line in found)


VALUES = (st.none() | st.text(max_size=60) | st.lists(st.text(max_size=5), max_size=6))


@given(st.lists(st.tuples(st.integers(-10**18, 10**18) | st.none(), VALUES, VALUES), max_size=6),
       st.integers(30, 160))
@settings(max_examples=150, deadline=None)
def test_whatever_the_texts_are_nothing_is_wider_than_the_terminal(rows, width):
    columns = list(zip(*rows)) or [(), (), ()]
    texts = [[value if isinstance(value, str) else None for value in columns[1]],
             [value if isinstance(value, list) else None for value in columns[2]]]
    table = pa.table({"n": pa.array(columns[0], pa.int64()), "text": pa.array(texts[0], pa.string()),
                      "list": pa.array(texts[1], pa.list_(pa.string()))})
    found, _ = table_lines(table, width)
    assert all(cell_len(line) <= width for line in found)
    assert not any(hidden(line) for line in found)
