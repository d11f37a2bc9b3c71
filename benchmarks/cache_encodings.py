"""The measurement behind storage/codec.py's choices: every candidate encoding of one column of each sort.

    python -m benchmarks.cache_encodings [--rows 131072] [--out benchmarks/results/cache_encodings.json]

One row group of benchmarks/cache_rows.py's flat rows, K = 32. Bytes per row, and rows per second of CPU time of one
thread, written and read with page CRCs. The line marked * is what the codec does.
"""

import argparse
import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.cache_rows import make_tokens
from storage import codec, schemas

SPLIT, DICTIONARY, PLAIN, DELTA = "BYTE_STREAM_SPLIT", "DICTIONARY", "PLAIN", "DELTA_BINARY_PACKED"
CANDIDATES = {
    "teacher_topk_ids": [(SPLIT, 1), (SPLIT, 3), (SPLIT, 9), (DICTIONARY, 1), (PLAIN, 1)],
    "teacher_topk_log_probs": [(SPLIT, 1), (SPLIT, 3), (SPLIT, 6), (SPLIT, 9), (SPLIT, 12), (DICTIONARY, 1),
                               (DICTIONARY, 6), (PLAIN, 6)],
    "teacher_log_probs_at_student_topk": [(SPLIT, 1), (SPLIT, 6), (DICTIONARY, 1)],
    "token_id": [(SPLIT, 1), (DICTIONARY, 1), (PLAIN, 1)],
    "student_log_prob": [(SPLIT, 1), (SPLIT, 9), (DICTIONARY, 1), (PLAIN, 1)],
    "teacher_rank": [(DICTIONARY, 1), (SPLIT, 1), (DELTA, 1)],
    "position": [(DELTA, 1), (DICTIONARY, 1), (SPLIT, 1)],
    "rollout_id": [(DICTIONARY, 1), (DELTA, 1), (PLAIN, 1)],
}
PAGES = [("1.0", 4 << 20, codec.ROW_GROUP_ROWS), ("1.0", 1 << 20, codec.ROW_GROUP_ROWS), ("1.0", 1 << 20, 20_000),
         ("2.0", 4 << 20, codec.ROW_GROUP_ROWS)]
"""Data page version, bytes and rows of a page; the first is the codec's."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache_encodings", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=codec.ROW_GROUP_ROWS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cache_encodings.json"))
    options = parser.parse_args()
    pa.set_cpu_count(1)
    table = make_tokens("flat", options.rows, schemas.TopK(teacher=32, student=16))
    results = []
    for name, candidates in CANDIDATES.items():
        for encoding, level in candidates:
            results.append(measure(table.select([name]), encoding, level, PAGES[0]))
    for name in ("teacher_topk_ids", "teacher_topk_log_probs", "student_log_prob"):
        level = 6 if name == "teacher_topk_log_probs" else 1
        results += [measure(table.select([name]), SPLIT, level, page) for page in PAGES[1:]]
    for result in results:
        print(" ".join(f"{value:<34}" if key == "column" else f"{value!s:>18}" for key, value in result.items()))
    report = {"command": "python -m benchmarks.cache_encodings", "rows": options.rows, "results": results}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(table: pa.Table, encoding: str, level: int, page: tuple[str, int, int]) -> dict:
    version, page_bytes, page_rows = page
    name = table.column_names[0]
    path = name + ".list.element" if pa.types.is_fixed_size_list(table.schema.field(0).type) else name
    how = {"use_dictionary": True} if encoding == DICTIONARY else {
        "use_dictionary": False, "column_encoding": {path: encoding}}
    sink = pa.BufferOutputStream()
    start = time.process_time()
    pq.write_table(table, sink, compression="zstd", compression_level=level, data_page_version=version,
                   data_page_size=page_bytes, max_rows_per_page=page_rows, write_page_checksum=True, **how)
    write_s = time.process_time() - start
    data = sink.getvalue()
    read_s = min(_read(data) for _ in range(3))
    chosen = page == PAGES[0] and (encoding, level) == (codec._encoding(path, _leaf(table)), codec._zstd_level(path))
    return {"column": ("* " if chosen else "  ") + name, "encoding": encoding, "zstd": level, "page_version": version,
            "page_bytes": page_bytes, "page_rows": page_rows, "bytes_per_row": round(len(data) / table.num_rows, 2),
            "write_k_rows_per_s": round(table.num_rows / write_s / 1e3),
            "read_k_rows_per_s": round(table.num_rows / read_s / 1e3)}


def _read(data: pa.Buffer) -> float:
    start = time.process_time()
    pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
    return time.process_time() - start


def _leaf(table: pa.Table) -> pa.DataType:
    kind = table.schema.field(0).type
    return kind.value_type if pa.types.is_fixed_size_list(kind) else kind


if __name__ == "__main__":
    main()
