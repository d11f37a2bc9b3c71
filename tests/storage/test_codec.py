import hashlib
import io
import subprocess
import sys

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import cache_overlap, cache_rows
from storage import codec, schemas
from storage.errors import IntegrityError

WIDTH = schemas.TopK(teacher=32, student=16)
SCHEMAS = dict(schemas.FIXED_TABLES, tokens=schemas.tokens(WIDTH),
               tokens_all=schemas.tokens(schemas.TopK(teacher=5, student=3, student_at_teacher=True)),
               tokens_k1=schemas.tokens(schemas.TopK(teacher=1, student=1)))
WORDS = ["", "math", "π ≈ 3.14159\n", "<|im_start|>", "x" * 300]


def random_value(generator: np.random.Generator, kind: pa.DataType, nullable: bool):
    if nullable and generator.random() < 0.3:
        return None
    if pa.types.is_fixed_size_list(kind):
        return [random_value(generator, kind.value_type, False) for _ in range(kind.list_size)]
    if pa.types.is_list(kind):
        return [random_value(generator, kind.value_type, False) for _ in range(generator.integers(0, 5))]
    if pa.types.is_struct(kind):
        return {field.name: random_value(generator, field.type, False) for field in kind}
    if pa.types.is_string(kind):
        return WORDS[generator.integers(len(WORDS))]
    if pa.types.is_boolean(kind):
        return bool(generator.integers(2))
    if pa.types.is_floating(kind):
        return float(np.float32(generator.choice([-np.inf, 0.0, -0.03125, generator.normal()])))
    return int(generator.integers(0, 2**31 - 1 if pa.types.is_int32(kind) else 2**63 - 1))


def random_table(schema: pa.Schema, rows: int, seed: int = 0) -> pa.Table:
    generator = np.random.default_rng(seed)
    columns = [pa.array([random_value(generator, field.type, field.nullable) for _ in range(rows)], field.type)
               for field in schema]
    return pa.table(columns, schema=schema)


def in_chunks(table: pa.Table, cuts: list[int]) -> pa.Table:
    edges = [0, *sorted(cuts), table.num_rows]
    return pa.concat_tables([table.slice(start, stop - start) for start, stop in zip(edges, edges[1:])])


@pytest.fixture(scope="module")
def token_rows() -> pa.Table:
    return cache_rows.make_tokens("flat", 4096, WIDTH)


@pytest.mark.parametrize("rows", [0, 1, 200])
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_comes_back_as_it_was_written(name, rows):
    table = random_table(SCHEMAS[name], rows)
    decoded = codec.decode(codec.encode(table), SCHEMAS[name])
    assert decoded.equals(table)
    assert decoded.schema.equals(SCHEMAS[name])
    assert [field.metadata for field in decoded.schema] == [field.metadata for field in SCHEMAS[name]]


def test_nan_and_infinities_come_back_bit_for_bit():
    schema = pa.schema([pa.field("loss", pa.float32(), nullable=False)])
    values = np.array([np.nan, -np.inf, np.inf, -0.0, 1e-45], np.float32)
    decoded = codec.decode(codec.encode(pa.table([values], schema=schema)), schema)
    assert decoded["loss"].to_numpy().tobytes() == values.tobytes()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 120), max_size=6), st.sampled_from(["rollouts", "mask", "tokens_all"]))
def test_equal_tables_give_equal_bytes_however_they_are_chunked(cuts, name):
    table = random_table(SCHEMAS[name], 120)
    assert codec.encode(in_chunks(table, cuts)) == codec.encode(table)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_table_that_was_read_encodes_to_the_bytes_it_was_read_from(name):
    data = codec.encode(random_table(SCHEMAS[name], 50))
    assert codec.encode(codec.decode(data, None)) == data


def test_metadata_of_pandas_or_anybody_else_does_not_change_the_bytes():
    table = random_table(schemas.STEPS, 10)
    assert codec.encode(table.replace_schema_metadata({"pandas": "{}"})) == codec.encode(table)


def test_another_process_writes_the_same_bytes():
    program = ("import hashlib; from benchmarks import cache_rows; from storage import codec, schemas;"
               "table = cache_rows.make_tokens('peaked', 500, schemas.TopK(8, 4));"
               "print(hashlib.sha256(codec.encode(table)).hexdigest())")
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    here = codec.encode(cache_rows.make_tokens("peaked", 500, schemas.TopK(8, 4)))
    assert other.stdout.strip() == hashlib.sha256(here).hexdigest()


def test_row_groups_hold_131072_rows():
    rows = codec.ROW_GROUP_ROWS + 5
    mask = pa.table({"rollout_id": np.arange(rows), "position": np.arange(rows, dtype=np.int32)})
    data = codec.encode(mask)
    metadata = pq.read_metadata(io.BytesIO(data))
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [131072, 5]
    assert codec.decode(data, None).equals(mask)
    assert codec.encode(in_chunks(mask, [7, 100_000])) == data


def test_columns_are_coded_as_the_docstring_says(token_rows):
    group = pq.read_metadata(io.BytesIO(codec.encode(token_rows))).row_group(0)
    columns = {group.column(index).path_in_schema.split(".")[0]: group.column(index)
               for index in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    split = {name for name, column in columns.items() if "BYTE_STREAM_SPLIT" in column.encodings}
    numbers = {field.name for field in token_rows.schema if field.name not in ("task", "reused_from")}
    assert split == numbers - {"rollout_id", "prompt_id", "position"}
    assert "DELTA_BINARY_PACKED" in columns["position"].encodings
    for name in ("rollout_id", "prompt_id", "task"):
        assert "RLE_DICTIONARY" in columns[name].encodings
    assert columns["position"].is_stats_set and not columns["teacher_topk_ids"].is_stats_set


@pytest.mark.parametrize("name", SCHEMAS)
def test_duckdb_reads_the_same_values(name, tmp_path):
    table = random_table(SCHEMAS[name], 100)
    (tmp_path / "part.parquet").write_bytes(codec.encode(table))
    relation = duckdb.connect().sql(f"select * from '{tmp_path}/part.parquet'")
    assert relation.columns == table.column_names
    for read, written in zip(relation.to_arrow_table().columns, table.columns):
        assert read.to_pylist() == written.to_pylist()


def test_lists_are_ordinary_lists_in_sql(token_rows, tmp_path):
    (tmp_path / "part.parquet").write_bytes(codec.encode(token_rows))
    connection = duckdb.connect()
    found = connection.sql(f"""
        select sum(teacher_topk_ids[1]), sum(len(student_topk_ids)), sum(list_max(teacher_topk_log_probs)::double)
        from '{tmp_path}/part.parquet' where position < 100""").fetchall()[0]
    kept = token_rows["position"].to_numpy() < 100
    ids_NK = codec.fixed_lists_to_numpy(token_rows["teacher_topk_ids"])[kept]
    log_probs_NK = codec.fixed_lists_to_numpy(token_rows["teacher_topk_log_probs"])[kept]
    assert found == (ids_NK[:, 0].sum(dtype=int), 16 * kept.sum(), log_probs_NK.max(1).sum(dtype=float))


def test_columns_are_read_in_the_order_asked_for(token_rows):
    decoded = codec.decode(codec.encode(token_rows), token_rows.schema, ["token_id", "position"])
    assert decoded.equals(token_rows.select(["token_id", "position"]))
    with pytest.raises(ValueError, match="no columns .'tokenid'."):
        codec.decode(codec.encode(token_rows), token_rows.schema, ["tokenid"])


def test_a_file_is_read_by_its_path(token_rows, tmp_path):
    path = tmp_path / "part.parquet"
    path.write_bytes(codec.encode(token_rows))
    assert codec.decode(path, token_rows.schema).equals(token_rows)
    with pytest.raises(FileNotFoundError):
        codec.decode(tmp_path / "absent.parquet", None)


def test_tensors_share_the_memory_of_the_table(token_rows):
    table = codec.decode(codec.encode(token_rows), token_rows.schema)
    names = ["teacher_topk_ids", "teacher_topk_log_probs", "teacher_rank", "rollout_id"]
    tensors = codec.columns_to_torch(table, names)
    assert {name: (tensor.dtype, tensor.shape[1:]) for name, tensor in tensors.items()} == {
        "teacher_topk_ids": (torch.int32, (32,)), "teacher_topk_log_probs": (torch.float32, (32,)),
        "teacher_rank": (torch.int32, ()), "rollout_id": (torch.int64, ())}
    for name, tensor in tensors.items():
        assert tensor.tolist() == table[name].to_pylist()
    flat = table["teacher_topk_ids"].chunk(0).flatten()
    assert tensors["teacher_topk_ids"].data_ptr() == flat.buffers()[1].address + 4 * flat.offset


def test_tensors_of_slices_chunks_and_empty_tables_are_right(token_rows):
    cut = in_chunks(token_rows, [10, 1000]).slice(5, 2000)
    expected = np.array(cut["student_topk_ids"].to_pylist())
    assert np.array_equal(codec.columns_to_torch(cut, ["student_topk_ids"])["student_topk_ids"].numpy(), expected)
    assert np.array_equal(codec.fixed_lists_to_numpy(cut["student_topk_ids"]), expected)
    assert codec.columns_to_torch(cut.slice(0, 0), ["student_topk_ids"])["student_topk_ids"].shape == (0, 16)


def test_nulls_do_not_become_numbers():
    with pytest.raises(ValueError, match="1 nulls"):
        codec.columns_to_torch(pa.table({"drift": pa.array([0.5, None])}))
    with pytest.raises(ValueError, match="null"):
        codec.encode(pa.table([pa.array([1, None])], schema=pa.schema([pa.field("step", pa.int64(), nullable=False)])))


def test_of_300_bit_flips_in_the_pages_none_changes_a_value(token_rows):
    """CRCs find them. What passes hit a page's header, a few bytes without a CRC, in a field that nobody reads."""
    data = codec.encode(token_rows)
    pages_end = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    passed = list(read_after_flips(data, token_rows, range(4 * 8, pages_end * 8), 300))
    assert len(passed) <= 3 and all(table.equals(token_rows) for table in passed)


def test_the_footer_has_no_crc_and_damage_there_never_ends_in_another_exception():
    """What passes is left to the sha256 of the whole file: no bit flip keeps that."""
    table = random_table(schemas.MASK, 40)
    data = codec.encode(table)
    footer = range((len(data) - 8 - int.from_bytes(data[-8:-4], "little")) * 8, len(data) * 8)
    assert 0 < len(list(read_after_flips(data, table, footer, 300))) < 200


def read_after_flips(data: bytes, table: pa.Table, bits: range, count: int):
    """Yield what decode returns where it does not refuse; any exception but IntegrityError fails the test."""
    for bit in np.random.default_rng(7).choice(np.array(bits), count, replace=False):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            yield codec.decode(bytes(flipped), table.schema)
        except IntegrityError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 10, b'{"json": true}\n' * 100])
def test_what_is_no_parquet_file_is_refused_in_one_line(data):
    with pytest.raises(IntegrityError, match="damaged or no Parquet file .*: run `opd verify`"):
        codec.decode(data, None)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(share, token_rows, tmp_path):
    data = codec.encode(token_rows)
    path = tmp_path / "part.parquet"
    path.write_bytes(data[:int(len(data) * share)])
    with pytest.raises(IntegrityError, match="part.parquet is damaged"):
        codec.decode(path, token_rows.schema)


def test_other_columns_than_the_schemas_are_refused_by_name():
    table = random_table(schemas.MASK, 3)
    refused = {
        "unknown .'extra'.": table.append_column("extra", pa.array([1, 2, 3])),
        "missing .'weight'.": table.drop_columns(["weight"]),
        "another order": table.select(["position", "rollout_id", "weight", "reasons"]),
        "column weight is double not null, expected float not null": table.set_column(
            2, pa.field("weight", pa.float64(), nullable=False), table["weight"].cast(pa.float64())),
        "column weight is float, expected float not null": table.set_column(
            2, pa.field("weight", pa.float32(), nullable=True), table["weight"]),
    }
    for message, other in refused.items():
        with pytest.raises(IntegrityError, match=message):
            codec.decode(codec.encode(other), schemas.MASK)


def test_another_k_than_the_schemas_is_refused():
    data = codec.encode(random_table(schemas.tokens(schemas.TopK(5, 3)), 2))
    with pytest.raises(IntegrityError, match=r"teacher_topk_ids is fixed_size_list.*\[5\] not null, expected.*\[6\]"):
        codec.decode(data, schemas.tokens(schemas.TopK(6, 3)))


MARK = {"ARROW:extension:name": "evil.type", "ARROW:extension:metadata": "payload"}
EXTENSIONS = {
    "known to Arrow": pa.field("harmless", pa.json_(pa.string())),
    "known to nobody": pa.field("harmless", pa.int64(), metadata=MARK),
    "inside a list": pa.field("harmless", pa.list_(pa.field("element", pa.int64(), metadata=MARK))),
    "inside a struct": pa.field("harmless", pa.struct([pa.field("x", pa.int64(), metadata=MARK)])),
}


@pytest.mark.parametrize("kind", EXTENSIONS)
def test_extension_types_are_refused_on_both_sides(kind):
    table = pa.schema([EXTENSIONS[kind]]).empty_table()
    sink = io.BytesIO()
    pq.write_table(table, sink)
    with pytest.raises(IntegrityError, match="column harmless has an extension type"):
        codec.decode(sink.getvalue(), None)
    with pytest.raises(IntegrityError, match="column harmless has an extension type"):
        codec.encode(table)


def test_the_module_imports_without_torch():
    program = "import sys, storage.codec, storage.grid; assert not {'torch', 'duckdb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("kind", "limit"), [("flat", 140), ("peaked", 120)])
def test_a_cached_token_stays_within_its_bytes(kind, limit):
    """benchmarks/cache_layout.py measures the same on full row groups, with speeds."""
    rows = 16_384
    table, exact = (cache_rows.make_tokens(kind, rows, WIDTH, grid=grid) for grid in (32, None))
    default = io.BytesIO()
    pq.write_table(exact, default)
    assert len(codec.encode(table)) <= 0.5 * len(default.getvalue())
    students_side = ["student_topk_ids", "student_topk_log_probs", "teacher_log_probs_at_student_topk"]
    assert len(codec.encode(table.drop_columns(students_side))) / rows <= limit


def test_the_overlap_coding_gives_the_students_side_back_in_sql(token_rows):
    connection = duckdb.connect()
    connection.register("packed", codec.decode(codec.encode(cache_overlap.pack(token_rows)), None))
    restored = connection.sql(cache_overlap.VIEW.format(table="packed")).to_arrow_table()
    for name in ("student_topk_ids", "teacher_log_probs_at_student_topk"):
        assert restored[name].to_pylist() == token_rows[name].to_pylist()
