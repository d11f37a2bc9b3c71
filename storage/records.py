"""What the commit protocol writes, as dataclasses, and their strict reading from sealed JSON.

Every document says its kind, run and round, and is sealed (documents.py); reading checks all of that, every field's
name and every field's type. Nothing here holds a timestamp or a host name: same work, same bytes.
"""

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from storage import documents
from storage.errors import IntegrityError

FORMAT = 3
"""Of every document; a reader refuses another."""

Record = TypeVar("Record")


@dataclass(frozen=True)
class ShardFile:
    """One Parquet file that counts. `size` in bytes."""

    key: str
    table: str
    rows: int
    size: int
    sha256: str


@dataclass(frozen=True)
class StoredFile:
    """One file of a checkpoint. `size` in bytes."""

    key: str
    size: int
    sha256: str


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint in the store. `fingerprint` hashes its weights, the folder's name all of its files."""

    prefix: str
    fingerprint: str
    files: list[StoredFile]

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(document: dict[str, Any], what: str = "checkpoint") -> "CheckpointFiles":
        return typing.cast(CheckpointFiles, _build(CheckpointFiles, document, what))


@dataclass(frozen=True)
class PlanShard:
    """Prompts of one shard; `rollout_seeds[i][j]` is the seed of sample j of prompt i."""

    index: int
    prompt_ids: list[int]
    rollout_seeds: list[list[int]]


@dataclass(frozen=True)
class EvaluationShard:
    """Held-out problems of one benchmark that one model answers.

    `role` is student (the checkpoint that the round ends with), start (the one that round 0 began with) or teacher.
    """

    index: int
    role: str
    benchmark: str
    prompt_ids: list[int]


@dataclass(frozen=True)
class ContinuationShard:
    """Prompts whose rollouts one model continues from chosen depths. `role` is student (the one that wrote them) or
    teacher."""

    index: int
    role: str
    prompt_ids: list[int]


@dataclass(frozen=True)
class Plan:
    """What a round is going to do. `parent` is the previous round's manifest id, `checkpoint` its fingerprint.

    `hidden`: the teacher's hidden states are kept. A stage that is not asked for has no shards.
    """

    round: int
    seed: int
    parent: str | None
    checkpoint: str
    shards: list[PlanShard]
    evaluation: list[EvaluationShard] = field(default_factory=list)
    continuation: list[ContinuationShard] = field(default_factory=list)
    hidden: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def shard_indices(self, stage: str) -> list[int]:
        """Shards of a stage: just 0 for `train`, those of `evaluation` and of `continuation` for these two stages,
        those of `shards` for all others; none for `hidden` unless asked for."""
        if stage == "train":
            return [0]
        if stage == "hidden" and not self.hidden:
            return []
        own = {"evaluate": self.evaluation, "continuation": self.continuation}
        return [shard.index for shard in own.get(stage, self.shards)]


@dataclass(frozen=True)
class Receipt:
    """One finished shard of a stage: the file that counts, what it was computed from (key -> sha256), counts.

    `checkpoint` is what `train` ends with, `head` the teacher's output head that the file of `hidden` is read with.
    """

    stage: str
    shard: int
    file: ShardFile
    inputs: dict[str, str]
    facts: dict[str, Any]
    checkpoint: CheckpointFiles | None
    head: CheckpointFiles | None = None


@dataclass(frozen=True)
class StageCommit:
    """A finished stage: its receipts (key -> sha256 of the receipt's bytes)."""

    stage: str
    receipts: dict[str, str]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """A finished round. `run_json`, `plan` and `stages` are sha256 of documents; `files` are all its shards."""

    run: str
    round: int
    run_json: str
    plan: str
    stages: dict[str, str]
    files: list[ShardFile]
    parent: str | None
    checkpoint_in: CheckpointFiles
    checkpoint_out: CheckpointFiles

    @property
    def id(self) -> str:
        """sha256 of the manifest's bytes."""
        return documents.sha256(pack("manifest", self.run, self.round, self))


def pack(kind: str, run: str, number: int, record: Any) -> bytes:
    """Sealed bytes of a record of round `number` of `run`."""
    return documents.seal({**dataclasses.asdict(record), "kind": kind, "format": FORMAT, "run": run, "round": number})


def unpack(cls: type[Record], kind: str, run: str, number: int, data: bytes, key: str) -> Record:
    """Read what `pack` wrote. Raises IntegrityError for damage, and for the document of another kind, run or round."""
    document = documents.unseal(data, key)
    expected = {"kind": kind, "format": FORMAT, "run": run, "round": number}
    for name, value in expected.items():
        if document.get(name) != value:
            raise IntegrityError(f"{key} is foreign: its {name} is {document.get(name)!r}, expected {value!r}",
                                 "foreign")
    names = {each.name for each in dataclasses.fields(cls)}
    return _build(cls, {name: value for name, value in document.items() if name in names or name not in expected}, key)


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value` as the type `kind`, checked recursively."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        inner = next(each for each in arguments if each is not type(None))
        return None if value is None else _build(inner, value, where)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if type(value) is not (origin or kind):
        raise IntegrityError(f"{where} should be {getattr(origin or kind, '__name__', kind)}, "
                             f"not {type(value).__name__}: it was not written by this version", "foreign")
    if origin is list:
        return _build_list(arguments[0], value, where)
    if origin is dict:
        return {name: _build(arguments[1], each, f"{where}: {name}") for name, each in value.items()}
    return value


def _build_list(kind: Any, values: list, where: str) -> list:
    if kind is int and all(type(each) is int for each in values):
        return values
    return [_build(kind, each, f"{where}[{index}]") for index, each in enumerate(values)]


def _build_dataclass(cls: Any, value: Any, where: str) -> Any:
    hints = _hints(cls)
    if not isinstance(value, dict) or value.keys() != hints.keys():
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise IntegrityError(f"{where} should have the fields {sorted(hints)}, not {found}: it was not written by "
                             "this version", "foreign")
    return cls(**{name: _build(hint, value[name], f"{where}: {name}") for name, hint in hints.items()})


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)
