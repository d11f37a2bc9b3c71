"""A store whose round 0 is ready to be trained on: made-up responses, scored by a slow dense loop."""

from pathlib import Path

from pipeline.config import load_config
from pipeline.models import load_model
from storage.objects import open_store
from storage.rounds import Plan, PlanShard, Round, create_run, put_checkpoint
from tests.tiny import make_tiny
from tests.train.tables import SMALL_K, K, mask_table, rollouts_table, tokens_table

SHARDS, PER_SHARD, VOCAB = 3, 4, 259


def scored_store(folder: Path, **changes) -> Path:
    """`changes` are keys of the config."""
    config = load_config(make_tiny(folder, **{"score.teacher_top_k": K, "score.student_top_k": SMALL_K,
                                              "train.epochs": 2, "train.warmup_steps": 0, **changes}))
    store = open_store(str(folder / "store"), create=True)
    checkpoint = put_checkpoint(store, "tiny", 0, folder / "student")
    create_run(store, "tiny", {"config": config.model_dump(mode="json"), "vocabulary": {"shared": VOCAB},
                               "student_checkpoint": checkpoint.as_dict(), "branch": None})
    fill_round(Round(store, "tiny", 0), checkpoint.fingerprint, folder / "student", folder / "teacher")
    return folder / "store"


def fill_round(round: Round, fingerprint: str, student: Path, teacher: Path) -> None:
    """Plan, rollouts, scores and masks of made-up responses."""
    round.put_plan(Plan(round.number, 3, None, fingerprint, [PlanShard(i, [], []) for i in range(SHARDS)]))
    models = load_model(student), load_model(teacher)
    for i in range(SHARDS):
        rollouts = rollouts_table(PER_SHARD, 10 + i, VOCAB, longest=20, policy=fingerprint)
        tokens = tokens_table(rollouts, *models, grid=32)
        round.finish("rollout", i, "rollouts", rollouts, inputs={})
        round.finish("score", i, "tokens", tokens, inputs={}, scores="0" * 8)
        round.finish("mask", i, "mask", mask_table(tokens, i), inputs={})
