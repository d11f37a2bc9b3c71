"""Weigh one shard of a round's tokens: one loss weight per token, with its reasons.

    opd mask --run R --round 3 --shard 7

The detector and SQL masks look at the whole round; what they say about this shard's tokens is kept. Weights multiply,
reasons collect in the order of the config. Special tokens and the detector need numpy alone, SQL masks need duckdb.
"""

import importlib.util

import pyarrow as pa

from pipeline.config.model import Detector, Mask, SpecialTokens, SqlMask
from pipeline.context import RoundContext
from pipeline.mask import detector, sources, special_tokens, sql
from pipeline.mask.marks import Marks, counts, mask_table
from storage.checks import refuse_silent_teacher
from storage.rounds import Receipt
from storage.snapshot import take_snapshot

COLUMNS = ["rollout_id", "position", "token_id"]


def run(context: RoundContext, shard: int) -> Receipt:
    """Check the shard's scores, then write its mask."""
    check_scores(context, shard)
    tokens = context.round.read("score", shard, COLUMNS)
    masks, facts, inputs = [], {}, context.round.input_files("score", shard)
    for index, settings in enumerate(context.config.mask):
        context.progress(f"mask {settings.type}", index, len(context.config.mask))
        marks, found, more_inputs = _mark(context, settings, tokens)
        masks.append(marks)
        facts[str(index)] = {"type": settings.type, **found}
        inputs |= more_inputs
    table = mask_table(tokens, masks)
    return context.round.finish("mask", shard, "mask", table, inputs=inputs,
                                facts={**counts(table), "masks": facts})


def check_scores(context: RoundContext, shard: int) -> None:
    """The last gate before training: sql/checks over the shard, where duckdb is installed."""
    if importlib.util.find_spec("duckdb"):
        refuse_silent_teacher(context.round.read("rollout", shard), context.round.read("score", shard),
                              run=context.run, number=context.number)


def check_config(masks: list[Mask], tokenizer) -> dict[str, str]:
    """Raise UserError for masks that cannot run, before a run begins. Returns the SQL to record in run.json."""
    for settings in masks:
        if isinstance(settings, SpecialTokens):
            special_tokens.resolve(settings.tokens, tokenizer)
    texts = sources.texts(masks)
    sql.check_early(texts)
    return texts


def _mark(context: RoundContext, settings: Mask, tokens: pa.Table) -> tuple[Marks, dict, dict[str, str]]:
    """What one mask says about the shard, what to note about it, and the files it read besides the shard's own."""
    match settings:
        case SpecialTokens():
            ids = special_tokens.resolve(settings.tokens, _tokenizer(context))
            return special_tokens.mark(tokens, ids, settings.occurrences), {"token_ids": ids}, {}
        case Detector():
            flagged = detector.flagged(context.round.read("score", None, detector.COLUMNS), settings)
            return detector.mark(tokens, flagged), {"token_ids": flagged.tolist()}, context.round.input_files("score")
        case SqlMask():
            return _mark_sql(context, settings, tokens)


def _mark_sql(context: RoundContext, settings: SqlMask, tokens: pa.Table) -> tuple[Marks, dict, dict[str, str]]:
    text = sources.text(settings, context.document)
    snapshot = take_snapshot(context.store, context.run, in_progress=True)
    with sql.connect(snapshot, context.run, context.number) as connection:
        rows, reads = sql.evaluate(connection, text, settings.file, context.number)
    round_places = sql.Places(context.round.read("score", None, ["rollout_id", "position"]))
    marks = sql.mark(rows, settings.file, round_places, sql.Places(tokens))
    return marks, {"file": settings.file, "sql": text}, _read_files(context, snapshot, reads)


def _read_files(context: RoundContext, snapshot, reads: set[str]) -> dict[str, str]:
    """Key -> sha256 of the files behind the relations that a mask names."""
    numbers = {"tokens": [context.number], "rollouts": [context.number], "history": range(context.number)}
    tables = {"tokens": "tokens", "rollouts": "rollouts", "history": "tokens"}
    return {file.key: file.sha256 for name in sorted(reads) for number in numbers[name]
            for file in snapshot.files(context.run, number, tables[name])}


def _tokenizer(context: RoundContext):
    from pipeline.models import load_tokenizer, pinned

    return load_tokenizer(pinned(context.config.student, context.document["student"]))
