"""Weigh one shard of a round's tokens: one loss weight per token, with its reasons.

    opd mask --run R --round 3 --shard 7

The detector and SQL masks look at the whole round, so masks are evaluated on the whole round, once per process, and
each shard gets its part. Weights multiply, reasons collect in the order of the config. Special tokens and the detector
need numpy alone, SQL masks need duckdb.

Two gates stand before training. The numpy gates of the score stage look at one shard before anything of it is written,
and decide alone where duckdb is not installed. sql/checks look at the whole round, here, once per process and before
any mask is written; they need no config, and whoever doubts a round can run them again on the stored scores.
"""

import importlib.util
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.config.model import Detector, Mask, SpecialTokens, SqlMask
from pipeline.context import RoundContext
from pipeline.kept import kept
from pipeline.mask import detector, sources, special_tokens, sql
from pipeline.mask.marks import Marks, counts, mask_table
from storage.checks import refuse_silent_round
from storage.rounds import Receipt, local_checkpoint, starting_checkpoint
from storage.snapshot import take_snapshot

COLUMNS = ["rollout_id", "position", "token_id"]


@dataclass(frozen=True)
class Evaluated:
    """What one mask says about a whole round."""

    marks: Marks
    facts: dict
    inputs: dict[str, str]
    """Key -> sha256 of the files it read, besides the shard's own scores."""


def run(context: RoundContext, shard: int) -> Receipt:
    """Check the round's scores, then write the shard's mask."""
    masks = evaluated(context)
    table = shard_table(context, shard, masks)
    inputs = context.round.input_files("score", shard)
    for mask in masks:
        inputs |= mask.inputs
    return context.round.finish("mask", shard, "mask", table, inputs=inputs, facts={
        **counts(table), "masks": {str(index): mask.facts for index, mask in enumerate(masks)}})


def shard_table(context: RoundContext, shard: int, masks: list[Evaluated]) -> pa.Table:
    """The rows of one shard, from `evaluated` masks; writes nothing."""
    tokens = context.round.read("score", shard, COLUMNS)
    first = sum(receipt.file.rows for receipt in context.round.receipts("score") if receipt.shard < shard)
    return mask_table(tokens, [mask.marks.cut(first, first + tokens.num_rows) for mask in masks])


def evaluated(context: RoundContext) -> list[Evaluated]:
    """Every mask of the config on the whole round, its scores checked; kept for the next shard of this process."""
    sources.refuse_edited(context.config.mask, context.document)
    texts = [sources.text(mask, context.document) for mask in context.config.mask if isinstance(mask, SqlMask)]
    scores = context.round.input_files("score")
    key = (context.store.url, context.run, context.number, *scores.items(), *texts,
           *(mask.model_dump_json() for mask in context.config.mask))
    return _evaluated(_Keyed(key, context))


def check_scores(context: RoundContext) -> None:
    """The last gate before training: sql/checks over the round, where duckdb is installed."""
    if importlib.util.find_spec("duckdb"):
        refuse_silent_round(_snapshot(context), context.run, context.number)


def check_config(masks: list[Mask], tokenizer) -> dict[str, str]:
    """Raise UserError for masks that cannot run, before a run begins. Returns the SQL to record in run.json."""
    for settings in masks:
        if isinstance(settings, SpecialTokens):
            special_tokens.resolve(settings.tokens, tokenizer)
    texts = sources.texts(masks)
    sql.check_early(texts)
    return texts


@dataclass(frozen=True)
class _Keyed:
    """A context to compute from, told apart by `key` alone."""

    key: tuple
    context: RoundContext = field(compare=False)


@kept
def _evaluated(keyed: _Keyed) -> list[Evaluated]:
    context, masks = keyed.context, keyed.context.config.mask
    context.progress("check scores", 0, len(masks) + 1)
    check_scores(context)
    found = []
    for index, settings in enumerate(masks, 1):
        context.progress(f"mask {settings.type}", index, len(masks) + 1)
        found.append(_evaluate(context, settings))
    return found


def _evaluate(context: RoundContext, settings: Mask) -> Evaluated:
    match settings:
        case SpecialTokens():
            ids = special_tokens.resolve(settings.tokens, _tokenizer(context))
            marks = special_tokens.mark(context.round.read("score", None, COLUMNS), ids, settings.occurrences)
            return Evaluated(marks, {"type": settings.type, "token_ids": ids}, {})
        case Detector():
            tokens = context.round.read("score", None, detector.COLUMNS)
            ids = detector.flagged(tokens, settings)
            return Evaluated(detector.mark(tokens, ids), {"type": settings.type, "token_ids": ids.tolist()},
                             context.round.input_files("score"))
        case SqlMask():
            return _evaluate_sql(context, settings)


def _evaluate_sql(context: RoundContext, settings: SqlMask) -> Evaluated:
    text = sources.text(settings, context.document)
    snapshot = _snapshot(context, history="history" in text.lower())  # no other name stands for it
    with sql.connect(snapshot, context.run, context.number) as connection:
        rows, reads = sql.evaluate(connection, text, settings.file, context.number)
    places = sql.Places(context.round.read("score", None, ["rollout_id", "position"]))
    return Evaluated(sql.mark(rows, settings.file, places),
                     {"type": settings.type, "file": settings.file, "sql": text},
                     _read_files(context, snapshot, reads))


def _snapshot(context: RoundContext, history: bool = False):
    """This round's files; with `history` those of the rounds before it too, whose manifests cost 1 ms each."""
    since = 0 if history else context.number
    return take_snapshot(context.store, context.run, in_progress=True, since=since)


def _read_files(context: RoundContext, snapshot, reads: set[str]) -> dict[str, str]:
    """Key -> sha256 of the files behind the relations that a mask names."""
    numbers = {"tokens": [context.number], "rollouts": [context.number], "history": range(context.number)}
    tables = {"tokens": "tokens", "rollouts": "rollouts", "history": "tokens"}
    return {file.key: file.sha256 for name in sorted(reads) for number in numbers[name]
            for file in snapshot.files(context.run, number, tables[name])}


def _tokenizer(context: RoundContext):
    """Of the checkpoint that starts the round: a replay needs no other file than its store's."""
    from pipeline.models import load_tokenizer

    folder = local_checkpoint(context.store, starting_checkpoint(context.store, context.run, context.number))
    return load_tokenizer(folder, trust_remote_code=context.config.student.trust_remote_code)
