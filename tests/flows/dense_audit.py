"""An audit of stored scores by an independent dense computation; shares no code with the product.

    python -m tests.flows.dense_audit STORE RUN        prints the largest deviations of every round

It reads the Parquet files with DuckDB's own reader, takes 200 tokens of each round, runs both models over the stored
token ids with full float32 logits, and compares.

Shapes: T tokens of one sequence, V vocabulary.
"""

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import duckdb
import torch
from transformers import AutoModelForCausalLM

TOKENS = 200


@dataclass
class Deviations:
    """Largest absolute differences of one round, in nats."""

    scalars: float = 0.0
    lists: float = 0.0
    wrong_ids: int = 0
    wrong_ranks: int = 0
    before: float | None = None
    """Of student_log_prob against the checkpoint before the one that began the round: must not be small."""


def audit(store: Path, run: str, number: int) -> Deviations:
    """Compare TOKENS stored rows of a round with the dense computation."""
    document = json.loads((store / f"run={run}/run.json").read_text())
    shared = document["vocabulary"]["shared"]
    student = load(checkpoint(store, run, number))
    teacher = load(document["teacher"]["path"])
    before = load(checkpoint(store, run, number - 1)) if number else None
    found = Deviations(before=0.0 if number else None)
    sequence = None
    for row in sample(store / f"run={run}/round={number}"):
        if sequence is None or sequence[0] != row["rollout_id"]:
            ids = torch.tensor([list(row["prompt_tokens"]) + list(row["response_tokens"])])
            with torch.no_grad():
                dense = [log_probs_TV(model, ids, shared) for model in (student, teacher, before)]
            sequence = row["rollout_id"], *dense
        at = len(row["prompt_tokens"]) + row["position"] - 1
        compare(found, row, sequence[1][at], sequence[2][at])
        if before is not None:
            found.before = max(found.before, abs(float(sequence[3][at][row["token_id"]]) - row["student_log_prob"]))
    return found


def sample(folder: Path) -> list[dict]:
    """TOKENS rows of the round's `tokens`, with their rollouts, sorted by rollout."""
    rows = duckdb.sql(f"""
        SELECT t.*, r.prompt_tokens, r.response_tokens
        FROM read_parquet('{folder}/tokens/*/*.parquet') t JOIN read_parquet('{folder}/rollouts/*.parquet') r
        USING (rollout_id) ORDER BY t.rollout_id, t.position""").to_arrow_table().to_pylist()
    chosen = random.Random(1).sample(range(len(rows)), min(TOKENS, len(rows)))
    return [rows[index] for index in sorted(chosen)]


def compare(found: Deviations, row: dict, p_V, q_V) -> None:
    """Fold one row's deviations into `found`; p_V and q_V are dense log-probs of student and teacher."""
    token, top = row["token_id"], row["teacher_topk_ids"]
    outside = torch.ones_like(q_V, dtype=torch.bool)
    outside[top] = False
    scalars = {
        "student_log_prob": p_V[token], "student_entropy": -(p_V.exp() * p_V).sum(),
        "teacher_log_prob": q_V[token], "teacher_entropy": -(q_V.exp() * q_V).sum(),
        "teacher_log_tail": q_V[outside].logsumexp(0), "student_log_tail": p_V[outside].logsumexp(0),
    }
    for name, value in scalars.items():
        found.scalars = max(found.scalars, abs(float(value) - row[name]))
    found.wrong_ranks += abs(1 + int((q_V > q_V[token]).sum()) - row["teacher_rank"]) > 0
    for ids, values, dense in (("teacher_topk_ids", "teacher_topk_log_probs", q_V),
                               ("student_topk_ids", "student_topk_log_probs", p_V),
                               ("student_topk_ids", "teacher_log_probs_at_student_topk", q_V)):
        difference = (dense[row[ids]] - torch.tensor(row[values], dtype=dense.dtype)).abs().max()
        found.lists = max(found.lists, float(difference))
    for ids, dense in (("teacher_topk_ids", q_V), ("student_topk_ids", p_V)):
        kept = dense.topk(len(row[ids])).values
        found.wrong_ids += bool((dense[row[ids]].sort(descending=True).values - kept).abs().max() > 1e-4)


def log_probs_TV(model, ids, shared: int):
    return None if model is None else model(ids).logits[0, :, :shared].float().log_softmax(-1).double()


def checkpoint(store: Path, run: str, number: int) -> Path:
    """The folder of the student that started round `number`."""
    source = f"run={run}/run.json" if number == 0 else f"run={run}/round={number - 1}/manifest.json"
    document = json.loads((store / source).read_text())
    return store / document["student_checkpoint" if number == 0 else "checkpoint_out"]["prefix"]


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def main(store: str, run: str) -> None:
    for folder in sorted((Path(store) / f"run={run}").glob("round=*"), key=lambda each: int(each.name[6:])):
        print(folder.name, audit(Path(store), run, int(folder.name[6:])))


if __name__ == "__main__":
    main(*sys.argv[1:])
