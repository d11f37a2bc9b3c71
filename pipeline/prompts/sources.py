"""Reading problems: data sets by their hub name, Parquet and JSON-lines files, generated tasks.

    problems = read_source(config.prompts.source)

Columns are named with dots where they are nested (`reward_model.ground_truth`). A reference answer that ends in
`#### N`, as GSM8K's do, is read as N; `solution` may name the same column and keeps all of it.
"""

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.model import FileSource, GeneratedSource, HubSource
from pipeline.prompts.local_copies import COLUMNS, ENVIRONMENT, data_folder, file_names, local_copy
from storage.errors import UserError
from storage.text import printable

Source = HubSource | FileSource | GeneratedSource
Records = list[tuple[int, dict]]
"""Row number in the data set and the columns that were asked for."""


@dataclass(frozen=True)
class Problems:
    """The rows of a data set; some that repeat an earlier row may be left out. `total` counts them too."""

    name: str
    rows: list["Row"]
    total: int


@dataclass(frozen=True)
class Row:
    """One problem. `question` is a text, or a chat: a list of {role, content}."""

    number: int
    """Row of the data set, from 0."""
    question: Any
    answer: str | None
    solution: str | None


def read_source(source: Source) -> Problems:
    """Read a source. Raises UserError for what is missing, naming what is near."""
    if isinstance(source, GeneratedSource):
        return _generated(source)
    if isinstance(source, FileSource):
        path = Path(source.path).expanduser()
        name = source.name or path.stem
    else:
        path, name = local_copy(source.name, source.split), source.name
    if path is None:
        return _problems(name, _read_hub(source), source, f"data set {source.name}")
    source = _renamed(source) if isinstance(source, HubSource) else source
    return _problems(name, _read_file(path, _columns(source), source.limit), source, str(path))


def _generated(source: GeneratedSource) -> Problems:
    from pipeline.prompts.generated import problems

    found = problems(source.generator, source.seed, source.problems, source.split)
    return Problems(source.generator, [Row(number, each.question, each.answer, each.solution)
                                       for number, each in enumerate(found)], len(found))


# --- columns ---------------------------------------------------------------------------------------------------


def _columns(source: HubSource | FileSource) -> list[str]:
    return [name for name in (source.question, source.answer, source.solution) if name]


def _renamed(source: HubSource) -> HubSource:
    """The same source with the column names of the local copy."""
    names = COLUMNS.get(source.name, {})
    return source.model_copy(update={key: names.get(getattr(source, key), getattr(source, key))
                                     for key in ("question", "answer", "solution")})


def _problems(name: str, found: tuple[Records, int], source: HubSource | FileSource, where: str) -> Problems:
    records, total = found
    return Problems(name, [_row(number, record, source, where) for number, record in records], total)


def _row(number: int, record: dict, source: HubSource | FileSource, where: str) -> Row:
    question = _value(record, source.question)
    if question is None or question == "" or question == []:
        raise UserError(f"{where}: row {number} has no {printable(source.question)!r}: mend the data set, or name "
                        "another column as prompts.source.question")
    return Row(number, question, _reference(_text(record, source.answer)), _text(record, source.solution))


def _value(record: dict, column: str) -> Any:
    """The value at a dotted name; a column that has the dots in its name wins."""
    if column in record:
        return record[column]
    value: Any = record
    for part in column.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _text(record: dict, column: str | None) -> str | None:
    value = _value(record, column) if column else None
    return value if value is None or isinstance(value, str) else str(value)


def _reference(answer: str | None) -> str | None:
    """What follows the last `####`, or all of it; None if that is nothing."""
    return (answer or "").rpartition("####")[2].strip() or None


def _check_columns(wanted: list[str], names: Iterable[str], where: str) -> None:
    """Raise UserError for the first column that is not among `names` (dotted), naming the nearest."""
    names = list(names)
    for column in wanted:
        if column not in names:
            near = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
            hint = f"the nearest is {printable(near[0])!r}" if near else f"it has {printable(', '.join(names[:12]))}"
            raise UserError(f"{where} has no column {printable(column)!r}: {hint}; set prompts.source.question, "
                            ".answer or .solution")


def _tops(columns: list[str], names: Iterable[str]) -> list[str]:
    """Top-level columns that hold `columns`."""
    names = set(names)
    return sorted({column if column in names else column.partition(".")[0] for column in columns})


def _schema_names(schema, prefix: str = "") -> list[str]:
    """Dotted names of all columns of an Arrow schema or struct."""
    import pyarrow as pa

    names = []
    for field in schema:
        names.append(prefix + field.name)
        if pa.types.is_struct(field.type):
            names += _schema_names(field.type, f"{prefix}{field.name}.")
    return names


# --- files -----------------------------------------------------------------------------------------------------


def _read_file(path: Path, columns: list[str], limit: int | None) -> tuple[Records, int]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"prompts file {printable(str(path))} {what}: prompts.source.path names a .parquet or .jsonl "
                        "file")
    readers = {".parquet": _read_parquet, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        raise UserError(f"prompts file {printable(str(path))} is neither .parquet nor .jsonl: convert it")
    return readers[path.suffix](path, columns, limit)


def _read_parquet(path: Path, columns: list[str], limit: int | None) -> tuple[Records, int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        _check_columns(columns, _schema_names(schema), str(path))
        table = pq.read_table(path, columns=_tops(columns, schema.names))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a whole Parquet file ({_first_line(error)}): get it again") from error
    return _distinct(table.slice(0, limit))


def _distinct(table) -> tuple[Records, int]:
    from pipeline.prompts.repeats import first_rows

    rows = first_rows(table)
    return list(zip(rows.tolist(), table.take(rows).to_pylist())), table.num_rows


def _read_jsonl(path: Path, columns: list[str], limit: int | None) -> tuple[Records, int]:
    records: list[dict] = []
    with path.open(encoding="utf-8-sig", errors="strict") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if limit is not None and len(records) == limit:
                    break
                if line.strip():
                    records.append(_record(line, path, number))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text ({_first_line(error)}): convert it") from error
    _check_columns(columns if records else [], _record_names(records), str(path))
    return list(enumerate(records)), len(records)


def _record(line: str, path: Path, number: int) -> dict:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: line {number} is not JSON ({_first_line(error)}): mend or remove it") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}: line {number} is a JSON {type(record).__name__}, not an object: mend or remove it")
    return record


def _record_names(records: list[dict], prefix: str = "") -> list[str]:
    """Dotted names of the columns that any record has."""
    names: dict[str, list[dict]] = {}
    for record in records:
        for name, value in record.items():
            names.setdefault(name, []).extend([value] if isinstance(value, dict) else [])
    return [dotted for name, nested in names.items()
            for dotted in (prefix + name, *_record_names(nested, f"{prefix}{name}."))]


# --- hub -------------------------------------------------------------------------------------------------------


def _read_hub(source: HubSource) -> tuple[Records, int]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"data set {source.name} comes from the hub, and the package `datasets` is not installed: "
                        f"install it, or set {ENVIRONMENT} to a folder with a copy") from error
    from huggingface_hub.utils import logging

    datasets.disable_progress_bars()
    logging.set_verbosity_error()  # each of its retries prints a warning; the error says it all
    try:
        found = datasets.load_dataset(source.name, source.subset, split=source.split, revision=source.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # no network, offline, gated, no such set, split, subset or revision
        raise UserError(_unreachable(source, error)) from error
    columns = _columns(source)
    _check_columns(columns, _schema_names(found.features.arrow_schema), f"data set {source.name}")
    found = found.select_columns(_tops(columns, found.column_names)).with_format("arrow")
    return _distinct(found[:source.limit])


def _unreachable(source: HubSource, error: Exception) -> str:
    names = " or ".join(file_names(source.name, source.split))
    folder = data_folder()
    copy = f"has no {names}" if folder else f"is not set (a folder with {names} would do)"
    return (f"data set {source.name} (split {source.split}) cannot be had from the hub: {_first_line(error)}; and "
            f"{ENVIRONMENT}{f' = {folder}' if folder else ''} {copy}: connect, mend the name, or put a copy there")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0][:200]).rstrip(".:") if lines else type(error).__name__
