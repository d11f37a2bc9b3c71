"""What a cached token costs on disk and how fast it comes back, beside pyarrow's defaults in the same run.

    python -m benchmarks.cache_layout [--rows 262144] [--repeats 5] [--out benchmarks/results/cache_layout.json]

Rows are benchmarks/cache_rows.py's, flat and peaked, K = 32 and k = 16. The baseline is what `pq.write_table(table)`
makes of the table as a scorer has it, log-probs in exact float32; its bytes for the table after the grid stand beside
it, so that one sees what the grid brings and what the coding. Speeds are per core: one thread, tokens per second of
process CPU time, best of the repeats (other processes on a shared machine cost wall time; wall is printed too).
Loading means every column but the two strings, from bytes in memory with CRCs checked, into torch tensors.

Exit code 1 if a target of the issue is missed.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import cache_overlap
from benchmarks.cache_rows import KINDS, VOCABULARY, make_tokens
from benchmarks.report import Target
from storage import codec, schemas

WIDTH = schemas.TopK(teacher=32, student=16)
WITH_OPTIONAL = schemas.TopK(teacher=32, student=16, student_at_teacher=True)
STUDENT_SIDE = ["student_topk_ids", "student_topk_log_probs", "teacher_log_probs_at_student_topk"]
STRINGS = ["task", "reused_from"]
LIMITS = {"of_default": 0.5, "without_student_flat": 140, "without_student_peaked": 120, "load_tokens_per_s": 1e6}
QUANTILES = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95]


def main() -> int:
    options = _options()
    pa.set_cpu_count(1)
    torch.set_num_threads(1)
    kinds = {kind: measure(kind, options.rows, options.repeats) for kind in KINDS}
    targets = check(kinds)
    report = {"command": "python -m benchmarks.cache_layout", "rows": options.rows, "repeats": options.repeats,
              "vocabulary": VOCABULARY, "machine": machine(), "kinds": kinds, "targets": targets}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    show(report)
    lines = [Target(f"{each['kind']}: {each['target']}", each["value"], each["limit"],
                    at_most="tokens per second" not in each["target"]) for each in targets]
    print("\n".join(each.line("cache_layout") for each in lines))
    return 0 if all(target["met"] for target in targets) else 1


def measure(kind: str, rows: int, repeats: int) -> dict:
    """Return bytes per token and speeds of both sides on `rows` rows of one kind."""
    exact = make_tokens(kind, rows, WITH_OPTIONAL, grid=None)
    full = make_tokens(kind, rows, WITH_OPTIONAL)
    optional = "student_log_probs_at_teacher_topk"
    table, exact = full.drop_columns([optional]), exact.drop_columns([optional])
    return {
        "rows": facts(exact),
        "ours": _timed(table, codec.encode, _our_load, repeats),
        "pyarrow_default_exact_float32": _timed(exact, _default_encode, _default_load, repeats),
        "pyarrow_default_after_the_grid": {"bytes_per_token": _per_row(_default_encode(table), rows)},
        "ours_with_optional_column": {"bytes_per_token": _per_row(codec.encode(full), rows)},
        "ours_without_students_side": {
            "bytes_per_token": _per_row(codec.encode(table.drop_columns(STUDENT_SIDE)), rows)},
        "bytes_per_token_of_columns": _columns(codec.encode(full), rows),
        "overlap_coding_not_used": _overlap(table, repeats),
    }


def facts(table: pa.Table) -> dict:
    """Say what the rows look like: quantiles of the teacher's top probability, and how the lists overlap."""
    top_N = np.exp(codec.fixed_lists_to_numpy(table["teacher_topk_log_probs"])[:, 0])
    teacher_NK = codec.fixed_lists_to_numpy(table["teacher_topk_ids"])[:4096]
    student_Nk = codec.fixed_lists_to_numpy(table["student_topk_ids"])[:4096]
    same_NkK = student_Nk[:, :, None] == teacher_NK[:, None, :]
    return {
        "top_probability_quantiles": dict(zip(map(str, QUANTILES), np.quantile(top_N, QUANTILES).round(4).tolist())),
        "student_top16_in_teacher_top16": round(float(same_NkK[:, :, :16].any(2).mean()), 4),
        "student_top16_in_teacher_top32": round(float(same_NkK.any(2).mean()), 4),
        "mean_abs_gap_of_sampled_token_nats": round(float(np.abs(
            table["teacher_log_prob"].to_numpy() - table["student_log_prob"].to_numpy()).mean()), 4),
    }


def check(kinds: dict) -> list[dict]:
    """Compare with the issue's targets."""
    targets = []
    for kind, result in kinds.items():
        ours, default = result["ours"], result["pyarrow_default_exact_float32"]
        without = result["ours_without_students_side"]["bytes_per_token"]
        for name, value, limit, most in [
            ("all columns, share of pyarrow's default", ours["bytes_per_token"] / default["bytes_per_token"],
             LIMITS["of_default"], True),
            ("bytes per token without the student's side", without, LIMITS[f"without_student_{kind}"], True),
            ("tokens per second and core into torch", ours["load_tokens_per_cpu_s"], LIMITS["load_tokens_per_s"],
             False),
        ]:
            targets.append({"kind": kind, "target": name, "value": round(value, 4), "limit": limit,
                            "met": bool(value <= limit if most else value >= limit)})
    return targets


def machine() -> dict:
    return {"cores": os.cpu_count(), "architecture": platform.machine(), "system": platform.system(),
            "python": platform.python_version(), "pyarrow": pa.__version__, "duckdb": duckdb.__version__,
            "torch": torch.__version__, "numpy": np.__version__}


def show(report: dict) -> None:
    for kind, result in report["kinds"].items():
        print(f"{kind}: {json.dumps(result['rows'])}")
        for side in ("pyarrow_default_exact_float32", "ours"):
            row = result[side]
            print(f"  {side:32}{row['bytes_per_token']:8.2f} B/token   write {row['write_tokens_per_cpu_s'] / 1e3:6.0f}"
                  f" k/s   load {row['load_tokens_per_cpu_s'] / 1e3:6.0f} k/s per core"
                  f" ({row['load_tokens_per_wall_s'] / 1e3:.0f} of wall)")
        for side in ("pyarrow_default_after_the_grid", "ours_with_optional_column", "ours_without_students_side",
                     "overlap_coding_not_used"):
            print(f"  {side:32}{result[side]['bytes_per_token']:8.2f} B/token")
        print("  columns:", ", ".join(f"{name} {size}" for name, size in result["bytes_per_token_of_columns"].items()))
        seconds = result["overlap_coding_not_used"]["sql_cpu_s_per_million_tokens"]
        print(f"  SQL over student_topk_ids, CPU s per million tokens: {json.dumps(seconds)}")
    for target in report["targets"]:
        verdict = "met" if target["met"] else "MISSED"
        print(f"{verdict:7}{target['kind']:7}{target['target']}: {target['value']} (limit {target['limit']})")


def _timed(table: pa.Table, encode, load, repeats: int) -> dict:
    write_s, data = _best(lambda: encode(table), min(repeats, 2))
    names = [name for name in table.column_names if name not in STRINGS]
    load_s, tensors = _best(lambda: load(data, table.schema, names), repeats)
    assert all(len(tensor) == table.num_rows for tensor in tensors.values())
    rows = table.num_rows
    speeds = {f"{what}_tokens_per_{clock}_s": round(rows / took[clock])
              for what, took in (("write", write_s), ("load", load_s)) for clock in ("cpu", "wall")}
    return {"bytes_per_token": _per_row(data, rows), **speeds}


def _best(action, repeats: int):
    best = {"cpu": float("inf"), "wall": float("inf")}
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        value = action()
        took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        best = {clock: min(best[clock], took[clock]) for clock in best}
    return best, value


def _our_load(data: bytes, schema: pa.Schema, names: list[str]) -> dict:
    return codec.columns_to_torch(codec.decode(data, schema, names, use_threads=False))


def _default_encode(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _default_load(data: bytes, schema: pa.Schema, names: list[str]) -> dict:
    return codec.columns_to_torch(pq.read_table(pa.BufferReader(data), columns=names, use_threads=False))


def _per_row(data: bytes, rows: int) -> float:
    return round(len(data) / rows, 3)


def _columns(data: bytes, rows: int) -> dict[str, float]:
    metadata = pq.read_metadata(pa.BufferReader(data))
    sizes: dict[str, int] = {}
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            name = column.path_in_schema.split(".")[0]
            sizes[name] = sizes.get(name, 0) + column.total_compressed_size
    return {name: round(size / rows, 2) for name, size in sizes.items()}


def _overlap(table: pa.Table, repeats: int) -> dict:
    """Measure cache_overlap's coding: bytes, and what its view adds to a query over memory, one DuckDB thread."""
    packed = cache_overlap.pack(table)
    data = codec.encode(packed)
    connection = duckdb.connect(config={"threads": 1})
    connection.register("stored", table)
    connection.register("packed", codec.decode(data, packed.schema))
    connection.execute("create temp view restored as " + cache_overlap.VIEW.format(table="packed"))
    different = connection.execute(
        "select count(*) from stored a positional join restored b where a.student_topk_ids::int[] != b.student_topk_ids"
        " or a.teacher_log_probs_at_student_topk::float[] != b.teacher_log_probs_at_student_topk").fetchall()[0][0]
    assert different == 0, f"{different} rows came back different"
    seconds = {}
    for view in ("stored", "restored"):
        took, _ = _best(lambda: connection.execute(f"select sum(student_topk_ids[1]) from {view}").fetchall(), repeats)
        seconds[view] = round(took["cpu"] / table.num_rows * 1e6, 3)
    return {"bytes_per_token": _per_row(data, table.num_rows), "sql_cpu_s_per_million_tokens": seconds}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache_layout", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=262_144, help="of each kind; two row groups by default")
    parser.add_argument("--repeats", type=int, default=5, help="of every load; the best counts")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cache_layout.json"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
