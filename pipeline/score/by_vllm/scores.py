"""A shard's scores where vLLM reads for the teacher: its answers become payloads, and our scorer reads for the student.

With score.reuse vLLM is asked only for rollouts that no earlier round has scored with the same teacher.
"""

import pyarrow as pa
from torch import nn

from pipeline.context import RoundContext
from pipeline.score.by_vllm.columns import teacher_columns
from pipeline.score.by_vllm.source import open_source
from pipeline.score.by_vllm.unknown import as_null
from pipeline.score.payload import Payload
from pipeline.score.reuse import files_of, find_payloads
from pipeline.score.rows import TokenRows
from pipeline.score.scorer import fitting, score_reusing
from storage.errors import UserError


def score_by_vllm(context: RoundContext, rollouts: pa.Table, student: nn.Module,
                  key: str) -> tuple[pa.Table, dict, dict[str, str]]:
    """Scores, with null for what vLLM does not know; facts for the receipt; and the files that payloads came from."""
    settings, document = context.config.score, context.document
    check_rollouts(context, rollouts)
    rows = TokenRows(rollouts)
    known = _reusable(context, rows, key) if settings.reuse else {}
    asked, facts = _ask(context, rows, known)
    scores, used = score_reusing(rollouts, student, _no_teacher, document["vocabulary"]["shared"], settings,
                                 known | asked, context.progress)
    reused = [payload for payload in used if payload.file]
    if settings.reuse:
        facts |= {"reused": len(reused), "scored": len(used) - len(reused),
                  "cut": sum(payload.width > settings.teacher_top_k for payload in reused)}
    context.notes.update(facts)
    return as_null(scores), facts, files_of(reused)


def check_rollouts(context: RoundContext, rollouts: pa.Table) -> None:
    """Raise UserError for what the scorer would refuse, before anything is asked."""
    shared = context.document["vocabulary"]["shared"]
    largest = max((int(each.values.to_numpy().max(initial=0)) for name in ("prompt_tokens", "response_tokens")
                   for each in rollouts[name].chunks), default=0)
    if largest >= shared:
        raise UserError(f"rollouts hold token {largest}, but the models share only ids below {shared}: the teacher "
                        "does not have it; keep the student from sampling such ids")


def _reusable(context: RoundContext, rows: TokenRows, key: str) -> dict[str, Payload]:
    """Payloads of earlier rounds that fit the rollouts' rows, by token hash."""
    weights = context.document["teacher"]["fingerprint"]
    found = find_payloads(context.store, key, weights, context.config.score, rows.rollouts)
    hashes = rows.rollouts["token_hash"].to_pylist()
    return {hashes[member]: payload for member, payload in fitting(rows, found).items()}


def _ask(context: RoundContext, rows: TokenRows, known: dict[str, Payload]) -> tuple[dict[str, Payload], dict]:
    """Payloads of the other rollouts with rows, from the teacher; equal ones are read once."""
    wanted: dict[str, int] = {}
    for member, token_hash in enumerate(rows.rollouts["token_hash"].to_pylist()):
        if token_hash not in known and len(rows.token_N[rows.rows_of(member)]):
            wanted.setdefault(token_hash, member)
    if not wanted:
        return {}, {}
    source = open_source(context)
    listed, facts = source.read(rows, list(wanted.values()), context.progress)
    payloads = {}
    for (token_hash, member), each in zip(wanted.items(), listed):
        part = rows.rows_of(member)
        columns = teacher_columns(each, rows.token_N[part], source.shared, context.config.score, source.name)
        payloads[token_hash] = Payload(None, None, columns | _of_the_rows(rows, part, columns), partial=True)
    return payloads, facts


def _of_the_rows(rows: TokenRows, part: slice, columns: dict) -> dict:
    """The rest of a payload: whose rows they are, and no ids beside the teacher's own."""
    none_R0 = columns["teacher_topk_ids"][:, :0]
    return {"position": rows.position_N[part], "token_id": rows.token_N[part], "student_topk_ids": none_R0,
            "teacher_log_probs_at_student_topk": columns["teacher_topk_log_probs"][:, :0]}


def _no_teacher():
    raise AssertionError("every rollout has a payload of vLLM's")
