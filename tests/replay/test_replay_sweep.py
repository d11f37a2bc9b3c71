"""Sweeps: the branches that one asks for, their names, and the rows of the table."""

import pytest

from pipeline.replay import sweep
from pipeline.replay.request import Request
from storage.errors import UserError
from storage.objects import open_store
from tests.replay.conftest import play, replay


def asked(store: str, presets=(), seeds=(0, 1), **request) -> list:
    return list(sweep.requests(open_store(store), store, Request("tiny", 1, **request), presets, seeds))


def test_every_preset_and_seed_is_one_branch_of_its_own(store):
    found = asked(store)
    assert len(found) == len({request.name for *_, request in found}) == 2 * len(sweep.SWEPT)
    preset, seed, request = found[1]
    assert request.name == f"tiny.r1.{preset}.s{seed}" and seed == 1
    assert request.settings == [f"objective.type={preset}", "seed=1"]
    assert asked(store, ["gkd"], [3], name="other")[0][2].name == "other.r1.gkd.s3"


def test_the_masked_preset_brings_a_mask_where_the_run_has_none_of_its_kind(store):
    replay(store, name="bare", masks=["none"], evaluate=False)
    found = {run: list(sweep.requests(open_store(store), store, Request(run, 1), ["sampled_token_masked"], [0]))
             for run in ("tiny", "bare")}
    assert {run: request.masks for run, [(_, _, request)] in found.items()} == {"tiny": None, "bare": ["+detector"]}


def test_rows_are_those_of_the_rounds_the_source_first(store):
    branches = []
    for preset, seed, request in asked(store, ["sampled_token", "gkd"], [0]):
        context, _ = replay(store, name=request.name, settings=request.settings)
        branches.append((preset, seed, context.run))
    found = sweep.rows(open_store(store), branches, ("tiny", 1))
    assert [(row["preset"], row["seed"], row["run"]) for row in found] == [
        ("as it was", None, "tiny"), ("sampled_token", 0, "tiny.r1.sampled_token.s0"), ("gkd", 0, "tiny.r1.gkd.s0")]
    assert all(row["avg_at_k"] is not None and row["closing_teacher_kl"] > 0 for row in found)
    assert len({row["closing_teacher_kl"] for row in found}) == 3


def test_a_preset_that_there_is_not_is_refused_before_any_branch(store):
    with pytest.raises(UserError, match="--sweep gkdd: no preset has this name"):
        asked(store, ["gkd", "gkdd"])


def test_a_cache_with_hidden_states_is_swept_over_the_whole_vocabulary_too(store):
    from tests.replay.test_rescore import rescore

    rescore(store, "states", "score.teacher_hidden_states=bfloat16")
    found = list(sweep.requests(open_store(store), store, Request("states", 1), (), [0]))
    assert found[-1][0] == "full_vocabulary"
    assert play(store, replay(store, run="states", name="full", settings=found[-1][2].settings)[0].run, 1).round == 1
