"""A whole store in milliseconds: every document and table of the commit protocol, no model."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from storage import layout, schemas
from storage.checkpoints import put_head
from storage.rounds import (
    ContinuationShard,
    EvaluationShard,
    Manifest,
    Plan,
    PlanShard,
    Round,
    create_run,
    parent_manifest,
    put_checkpoint,
    starting_checkpoint,
)

STAGE_TABLES = {"prompts": "prompts", "rollout": "rollouts", "score": "tokens", "hidden": "hidden",
                "continuation": "continuation", "mask": "mask", "train": "steps", "evaluate": "evaluation"}
EARLIER = {"rollout": "prompts", "score": "rollout", "hidden": "rollout", "mask": "score"}
WIDTH = schemas.TopK(teacher=4, student=2)


def schema_of(stage: str) -> pa.Schema:
    own = {"score": schemas.tokens(WIDTH), "hidden": schemas.hidden(8)}
    return own.get(stage) or schemas.FIXED_TABLES[STAGE_TABLES[stage]]


def table(stage: str, shard: int = 0, variant: int = 0, rows: int = 3) -> pa.Table:
    """Rows that have the stage's schema and differ by shard and variant."""
    random = np.random.default_rng([shard, variant, len(stage)])
    return pa.table([_column(field, random, rows) for field in schema_of(stage)], schema=schema_of(stage))


def _column(field: pa.Field, random: np.random.Generator, rows: int) -> pa.Array:
    return pa.array([_value(field.type, random) for _ in range(rows)], field.type)


def _value(kind: pa.DataType, random: np.random.Generator):
    if pa.types.is_fixed_size_list(kind):
        return [_value(kind.value_type, random) for _ in range(kind.list_size)]
    if pa.types.is_list(kind):
        return [_value(kind.value_type, random) for _ in range(2)]
    if pa.types.is_struct(kind):
        return {each.name: _value(each.type, random) for each in kind}
    number = int(random.integers(0, 1000))
    if pa.types.is_fixed_size_binary(kind):
        return number.to_bytes(kind.byte_width, "little")
    return f"text {number}" if pa.types.is_string(kind) else bool(number % 2) if pa.types.is_boolean(kind) else number


def model_folder(folder: Path, seed: int = 0, optimizer_seed: int | None = None) -> Path:
    """A checkpoint as Hugging Face lays it out, of a few hundred bytes."""
    folder.mkdir(parents=True)
    save_file({"w": np.full(8, seed, np.float32)}, folder / "model.safetensors")
    save_file({"m": np.full(4, seed if optimizer_seed is None else optimizer_seed, np.float32)},
              folder / "optimizer.safetensors")
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def head_folder(scratch: Path) -> Path:
    """A teacher's output head of a few bytes."""
    folder = scratch / "head"
    if not folder.exists():
        folder.mkdir(parents=True)
        save_file({"weight": np.ones((2, 2), np.float32)}, folder / "head.safetensors")
        (folder / "head.json").write_text("{}")
    return folder


def make_run(store, run: str, folder: Path, rounds: int = 1) -> dict:
    """run.json and checkpoint=0."""
    if not folder.exists():
        model_folder(folder)
    files = put_checkpoint(store, run, 0, folder)
    return create_run(store, run, {
        "config": {"rounds": rounds, "store": store.url, "mask": [{"type": "special_tokens"}], "seed": 1},
        "teacher": {"fingerprint": "7ea0"}, "student": {"path": "student"}, "versions": {}, "branch": None,
        "student_checkpoint": files.as_dict()})


def make_plan(round: Round, shards: int) -> Plan:
    return round.put_plan(Plan(
        round.number, 1, parent_manifest(round.store, round.run, round.number),
        starting_checkpoint(round.store, round.run, round.number).fingerprint,
        [PlanShard(index, [index], [[7]]) for index in range(shards)],
        [EvaluationShard(index, "student", "sums", [index]) for index in range(2)],
        [ContinuationShard(0, "teacher", [0])], hidden=True))


def play_shard(round: Round, stage: str, shard: int, scratch: Path, variant: int = 0):
    """What a stage does: read the earlier stage's shard, write its own."""
    checkpoint, inputs = None, {}
    if stage in EARLIER:
        round.read(EARLIER[stage], shard)
        inputs = round.input_files(EARLIER[stage], shard)
    if stage == "train":
        round.read("mask")
        inputs = round.input_files("mask")
        folder = scratch / f"{round.run}-{round.number + 1}-{variant}"
        if not folder.exists():
            model_folder(folder, seed=10 * (round.number + 1) + variant)
        checkpoint = put_checkpoint(round.store, round.run, round.number + 1, folder)
    head = put_head(round.store, round.run, head_folder(scratch)) if stage == "hidden" else None
    rows = table(stage, shard, variant + 100 * round.number)
    return round.finish(stage, shard, STAGE_TABLES[stage], rows, inputs=inputs,
                        facts={"rows": 3, "reasons": {"special": shard}}, checkpoint=checkpoint, head=head,
                        scores="0123abcd" if stage == "score" else None)


def play_round(store, run: str, number: int, scratch: Path, shards: int = 2, variant: int = 0) -> Manifest:
    """Bring a round to its commit; resumes one that was interrupted."""
    round = Round(store, run, number)
    if not round.planned():
        make_plan(round, shards)
    for stage in layout.STAGES:
        for shard in round.pending(stage):
            play_shard(round, stage, shard, scratch, variant)
        round.commit_stage(stage)
    return round.commit()


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a store by its path, temp files and timings left out."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*"))
            if path.is_file() and not path.name.startswith(".tmp-") and "/timings/" not in str(path)}
