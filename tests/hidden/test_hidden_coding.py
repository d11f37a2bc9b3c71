"""Hidden states survive their coding up to its rounding, in memory and through Parquet, and DuckDB reads the file."""

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.hidden.coding import LARGEST, bytes_per_token, decode, encode, stored_bytes
from storage import codec, schemas

ROUNDING = {"bfloat16": 2**-8, "float8": 2**-4}
"""Half a step of the significand, relative to the number."""


def states(rows=64, width=48, seed=0):
    """Rows of very different sizes, a row of zeros, dimensions of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-6, 6, rows)[:, None]
    hidden_ND = torch.randn(rows, width, generator=generator) * sizes * torch.logspace(-1, 1, width)
    hidden_ND[3] = 0
    return hidden_ND


@pytest.mark.parametrize("dtype", ROUNDING)
def test_every_number_is_off_by_at_most_half_a_step(dtype):
    hidden_ND = states()
    found_ND = decode(*encode(hidden_ND, dtype), dtype)
    # Below 2^-6 of its scale float8 has steps of 2^-9: numbers smaller than 1/28672 of the row's largest.
    smallest = hidden_ND.abs().amax(1, keepdim=True) / LARGEST * 2**-10 if dtype == "float8" else 0.0
    assert ((found_ND - hidden_ND).abs() <= ROUNDING[dtype] * hidden_ND.abs() * 1.0001 + smallest).all()
    assert found_ND.dtype == torch.float32 and not found_ND[3].any() and found_ND.isfinite().all()


def test_states_of_a_teacher_in_bfloat16_come_back_bit_by_bit():
    hidden_ND = states().bfloat16()
    assert torch.equal(decode(*encode(hidden_ND, "bfloat16"), "bfloat16"), hidden_ND.float())


def test_float8_uses_its_whole_range_in_every_row():
    stored_NB, _ = encode(states(), "float8")
    largest_N = torch.from_numpy(stored_NB).view(torch.float8_e4m3fn).float().abs().amax(1)
    assert torch.equal(largest_N[largest_N > 0], torch.full((63,), LARGEST))


@pytest.mark.parametrize("dtype, stored, cost", [("bfloat16", 96, 96), ("float8", 48, 52)])
def test_a_token_costs_its_numbers_and_its_scale(dtype, stored, cost):
    assert encode(states(), dtype)[0].shape == (64, stored) and stored_bytes(dtype, 48) == stored
    assert bytes_per_token(dtype, 48) == cost


@pytest.mark.parametrize("dtype", ROUNDING)
def test_the_file_holds_the_same_bytes_and_duckdb_reads_them(dtype, tmp_path):
    stored_NB, scale_N = encode(states(), dtype)
    schema = schemas.hidden(stored_NB.shape[1])
    table = pa.table([pa.array(np.arange(64)), pa.array(np.arange(64), pa.int32()), pa.array(scale_N),
                      pa.array([row.tobytes() for row in stored_NB], schema.field("hidden").type)], schema=schema)
    data = codec.encode(table)
    assert codec.encode(pa.concat_tables([table.slice(0, 9), table.slice(9)])) == data
    read = codec.decode(data, schema)
    assert np.array_equal(codec.fixed_bytes_to_numpy(read["hidden"]), stored_NB)
    assert np.array_equal(codec.fixed_bytes_to_numpy(read["hidden"].slice(5, 7)), stored_NB[5:12])
    (tmp_path / "hidden.parquet").write_bytes(data)
    column = pq.read_metadata(tmp_path / "hidden.parquet").row_group(0).column(3)
    assert set(column.encodings) == {"PLAIN", "RLE"} and column.statistics is None  # RLE: of levels
    rows = duckdb.sql(f"SELECT hidden, scale FROM '{tmp_path}/hidden.parquet' ORDER BY position").fetchall()
    assert [bytes(row[0]) for row in rows] == [row.tobytes() for row in stored_NB]
    assert np.array_equal(np.float32([row[1] for row in rows]), scale_N)


def test_a_bit_that_flips_in_a_hidden_state_is_found():
    stored_NB, scale_N = encode(states(), "bfloat16")
    schema = schemas.hidden(96)
    table = pa.table([pa.array(np.arange(64)), pa.array(np.arange(64), pa.int32()), pa.array(scale_N),
                      pa.array([row.tobytes() for row in stored_NB], schema.field("hidden").type)], schema=schema)
    data = bytearray(codec.encode(table))
    data[len(data) // 2] ^= 1
    with pytest.raises(codec.IntegrityError):
        codec.decode(bytes(data), schema)
