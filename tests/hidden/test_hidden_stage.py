"""The stage over a real store, and training from what it wrote: with the teacher gone, damaged, foreign or live."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import provenance, stages
from pipeline.config import load_config
from pipeline.context import RoundContext, open_context
from pipeline.hidden import stage
from pipeline.hidden.coding import decode
from pipeline.hidden.teacher import hidden_table
from pipeline.models import load_model, load_tokenizer, trunk
from pipeline.start import start_run
from pipeline.train import stage as train_stage
from storage.codec import fixed_bytes_to_numpy
from storage.errors import IntegrityError, UserError
from storage.objects import open_store
from storage.rounds import Round
from storage.verify import verify
from tests.tiny import make_tiny, save_model

VOCABULARY, WIDTH = 259, 32
BEFORE_TRAINING = ("prompts", "rollout", "score", "hidden", "mask")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As the stage's process would set it."""
    stages.prepare_process(1)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Path:
    """A folder with a store whose round 0 can be trained on: scores, hidden states in bfloat16, masks."""
    folder = tmp_path_factory.mktemp("ready")
    config = load_config(make_tiny(folder, **{
        "score.teacher_hidden_states": "bfloat16", "objective.type": "full_vocabulary", "prompts.per_round": 4,
        "train.rollouts_per_step": 8}))
    start_run(config)
    context = open_context(config.store, "tiny", 0)
    stages.plan(context)
    for name in BEFORE_TRAINING:
        for shard in context.round.pending(name):
            stages.run_shard(context, name, shard)
    return folder


@pytest.fixture
def store(ready, tmp_path) -> Path:
    return Path(shutil.copytree(ready / "store", tmp_path / "store"))


def round_of(store: Path, **objective) -> RoundContext:
    """Round 0 of the store, with other keys of the objective."""
    context = open_context(str(store), "tiny", 0)
    config = context.config.model_copy(update={"objective": context.config.objective.model_copy(update=objective)})
    return dataclasses.replace(context, config=config)


def test_the_rows_are_those_of_tokens_and_hold_the_teachers_final_hidden_states(ready):
    context, teacher = round_of(ready / "store"), load_model(ready / "teacher")
    tokens, table = context.round.read("score"), context.round.read("hidden")
    assert table.select(["rollout_id", "position"]) == tokens.select(["rollout_id", "position"])
    found = dict(zip(zip(table["rollout_id"].to_pylist(), table["position"].to_pylist()),
                     decode(fixed_bytes_to_numpy(table["hidden"]).copy(), table["scale"].to_numpy(), "bfloat16")))
    for rollout in context.round.read("rollout").to_pylist():
        prompt, response = rollout["prompt_tokens"], rollout["response_tokens"]
        with torch.no_grad():
            expected_TD = trunk(teacher)(torch.tensor([prompt + response]))[0]
        for position in range(len(response)):
            ours, theirs = found.pop((rollout["rollout_id"], position)), expected_TD[len(prompt) + position - 1]
            assert ((ours - theirs).abs() <= 2**-8 * theirs.abs() + 1e-5).all()
    assert not found


def test_receipts_say_what_a_token_costs_and_name_one_head(ready):
    context = round_of(ready / "store")
    receipts = context.round.receipts("hidden")
    score = context.round.receipt("score", 0).facts
    assert all(receipt.facts == {"dtype": "bfloat16", "width": WIDTH, "bytes_per_token": 2 * WIDTH,
                                 "teacher_key": score["teacher_key"]} for receipt in receipts)
    assert len(receipts) == 2 and receipts[0].head == receipts[1].head
    folder = next((ready / "store" / "run=tiny" / "head").iterdir())
    assert [path.name for path in sorted(folder.iterdir())] == ["head.json", "head.safetensors"]
    weight_VD = load_file(ready / "teacher" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(load_file(folder / "head.safetensors")["weight"], weight_VD[:VOCABULARY])
    assert json.loads((folder / "head.json").read_text()) == {
        "dtype": "float32", "scale": 1.0, "softcap": None, "teacher": context.document["teacher"]["fingerprint"],
        "vocabulary": VOCABULARY, "width": WIDTH}


def dense_loss(folder: Path, context: RoundContext) -> float:
    """The first step's loss from whole logits in float64."""
    student, teacher = (load_model(folder / name).double() for name in ("student", "teacher"))
    weight = {(row["rollout_id"], row["position"]): row["weight"] for row in context.round.read("mask").to_pylist()}
    total, count = 0.0, 0
    for rollout in context.round.read("rollout").to_pylist():
        prompt, response = rollout["prompt_tokens"], rollout["response_tokens"]
        with torch.no_grad():
            log_p, log_q = (model(input_ids=torch.tensor([prompt + response])).logits[0, :, :VOCABULARY].log_softmax(-1)
                            for model in (student, teacher))
        for position in range(len(response)):
            t, w = len(prompt) + position - 1, weight[rollout["rollout_id"], position]
            total += w * float((log_p[t].exp() * (log_p[t] - log_q[t])).sum())
            count += w != 0
    return total / count


def trained(context: RoundContext) -> list[dict]:
    return train_stage.train(context).steps.to_pylist()


def test_training_from_the_cache_opens_no_file_of_the_teacher_and_agrees_with_whole_logits(ready, store, tmp_path):
    context, teacher = round_of(store), ready / "teacher"
    expected = dense_loss(ready, context)
    live = trained(round_of(store, teacher="live"))[0]["loss"]
    teacher.rename(ready / "away")
    try:
        receipt = train_stage.run(context)
        provenance._check_teacher.cache_clear()
        with pytest.raises(UserError, match="model folder .*teacher does not exist"):
            trained(round_of(store, teacher="live"))
    finally:
        (ready / "away").rename(teacher)
    cached = context.round.read("train")["loss"][0].as_py()
    assert expected > 0.05 and cached != live
    assert live == pytest.approx(expected, abs=1e-6) and cached == pytest.approx(expected, abs=2**-8 / 10)
    hidden = context.round.receipts("hidden")
    assert {file.key for file in hidden[0].head.files} | {each.file.key for each in hidden} <= receipt.inputs.keys()
    assert verify(open_store(str(store))) == []


def test_the_same_cache_gives_the_same_student(store, tmp_path):
    other = Path(shutil.copytree(store, tmp_path / "other"))
    assert train_stage.run(round_of(store)) == train_stage.run(round_of(other))


def test_a_round_without_hidden_states_is_refused_with_what_to_do(ready, tmp_path):
    source, store = open_store(str(ready / "store")), open_store(str(tmp_path / "store"), create=True)
    for each in source.list("run=tiny/"):
        if "round=0/" not in each.key:
            store.put_if_absent(each.key, source.get(each.key))
    old, new = Round(source, "tiny", 0), Round(store, "tiny", 0)
    new.put_plan(dataclasses.replace(old.plan(), hidden=False))
    for name, table in (("prompts", "prompts"), ("rollout", "rollouts"), ("score", "tokens"), ("mask", "mask")):
        for receipt in old.receipts(name):
            new.finish(name, receipt.shard, table, old.read(name, receipt.shard), inputs={}, facts=receipt.facts,
                       scores="0" * 8)
    with pytest.raises(UserError) as caught:
        trained(round_of(tmp_path / "store"))
    assert str(caught.value) == (
        "objective full_vocabulary needs the teacher's hidden states, which round 0 of tiny does not have: score it "
        "again with `opd rescore tiny --round 0 --set score.teacher_hidden_states=bfloat16`, or set objective.teacher "
        "= 'live'")
    assert trained(round_of(tmp_path / "store", teacher="live"))


def with_hidden(source: Path, target: Path, change) -> RoundContext:
    """A copy of the store whose hidden shards went through `change(index, table)`; the receipts fit them."""
    shutil.copytree(source, target, ignore=lambda folder, names: [name for name in names if name.startswith("hidden")])
    old, context = Round(open_store(str(source)), "tiny", 0), round_of(target)
    for receipt in old.receipts("hidden"):
        table = change(receipt.shard, old.read("hidden", receipt.shard))
        context.round.finish("hidden", receipt.shard, "hidden", table, inputs=receipt.inputs,
                             facts=receipt.facts, head=receipt.head)
    return context


def test_rows_in_another_order_are_refused(ready, tmp_path):
    context = with_hidden(ready / "store", tmp_path / "store",
                          lambda index, table: table.take(pa.array(np.arange(len(table))[::-1])))
    with pytest.raises(IntegrityError, match="shard 0: rollout_id of hidden is .* in row 0 where the rollouts say"):
        trained(context)


def test_missing_rows_are_refused(ready, tmp_path):
    context = with_hidden(ready / "store", tmp_path / "store", lambda index, table: table.slice(0, len(table) - index))
    with pytest.raises(IntegrityError, match="hidden states of .* tokens where the rollouts have"):
        trained(context)


def test_hidden_states_that_do_not_say_what_the_scores_say_are_refused(ready, tmp_path):
    sharp = save_model(tmp_path / "sharp", load_tokenizer(ready / "teacher"), seed=9, sharpness=9.0)
    rollouts = round_of(ready / "store").round.read("rollout")
    other = hidden_table(rollouts, load_model(sharp), "bfloat16", 4096)
    starts = np.cumsum([0] + [receipt.file.rows for receipt in round_of(ready / "store").round.receipts("hidden")])
    context = with_hidden(ready / "store", tmp_path / "store",
                          lambda index, table: other.slice(starts[index], len(table)))
    with pytest.raises(IntegrityError, match="differ from its scores by .* nats: they are of another teacher"):
        trained(context)


@pytest.mark.parametrize("victim", ["part", "head.safetensors", "head.json"])
def test_a_damaged_shard_or_head_is_refused_by_training_and_named_by_verify(store, victim):
    path = next(path for path in (store / "run=tiny").rglob(f"{victim}*") if {"hidden", "head"} & set(path.parts))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)
    key = path.relative_to(store).as_posix()
    with pytest.raises(IntegrityError, match=path.name):
        trained(round_of(store))
    assert [(found.key, found.kind) for found in verify(open_store(str(store)))] == [(key, "changed")]


def test_a_missing_head_and_a_file_planted_beside_it_are_refused_and_named_by_verify(store):
    head = next((store / "run=tiny" / "head").iterdir())
    (head / "adapter.bin").write_bytes(b"x")
    assert [(found.key, found.kind) for found in verify(open_store(str(store)))] == [
        (f"run=tiny/head/{head.name}/adapter.bin", "foreign")]
    with pytest.raises(IntegrityError, match="adapter.bin lies in"):
        trained(round_of(store))
    (head / "adapter.bin").unlink()
    (head / "head.safetensors").unlink()
    assert [(found.key, found.kind) for found in verify(open_store(str(store)))] == [
        (f"run=tiny/head/{head.name}/head.safetensors", "missing")]


def again(ready: Path, folder: Path) -> RoundContext:
    """The round as it was before its hidden states."""
    left_out = ("hidden", "head")
    shutil.copytree(ready / "store", folder, ignore=lambda _, names: [n for n in names if n.startswith(left_out)])
    return open_context(str(folder), "tiny", 0)


def test_a_shard_computed_again_has_the_same_bytes_and_float8_half_of_them(ready, tmp_path):
    context = again(ready, tmp_path / "store")
    first = round_of(ready / "store").round.receipt("hidden", 1)
    assert stage.run(context, 1) == first
    small = again(ready, tmp_path / "small")
    score = small.config.score.model_copy(update={"teacher_hidden_states": "float8"})
    receipt = stage.run(dataclasses.replace(small, config=small.config.model_copy(update={"score": score})), 0)
    assert receipt.facts["dtype"] == "float8" and receipt.facts["bytes_per_token"] == WIDTH + 4
    assert receipt.head == first.head and context.store.get(receipt.head.files[0].key)


def test_shards_finished_after_the_next_were_begun_have_the_same_receipts(ready, tmp_path):
    context, expected = again(ready, tmp_path / "store"), round_of(ready / "store").round.receipts("hidden")
    finish = [stages.begin_shard(context, "hidden", shard) for shard in (0, 1)]
    assert not list((tmp_path / "store").rglob("head")) + list((tmp_path / "store").rglob("hidden"))
    assert [each() for each in finish] == expected


def test_another_teacher_than_the_runs_writes_nothing(ready, tmp_path):
    context = again(ready, tmp_path / "store")
    weights = ready / "teacher" / "model.safetensors"
    kept = weights.read_bytes()
    tensors = load_file(weights)
    try:
        tensors["model.norm.weight"][0] += 1
        save_file(tensors, weights, metadata={"format": "pt"})
        provenance._check_teacher.cache_clear()
        with pytest.raises(UserError, match="is not the one that this run began with"):
            stage.run(context, 0)
    finally:
        weights.write_bytes(kept)
        provenance._check_teacher.cache_clear()
    assert context.round.receipt("hidden", 0) is None
    assert not list((tmp_path / "store").rglob("head")) + list((tmp_path / "store").rglob("hidden"))


def test_rollouts_whose_tokens_were_changed_are_refused(ready, tmp_path):
    old, context = round_of(ready / "store").round, again(ready, tmp_path / "store")
    for path in (tmp_path / "store").rglob("rollout-0.json"):
        path.unlink()
    rollouts = old.read("rollout", 0)
    place, hashes = rollouts.schema.get_field_index("token_hash"), pa.array(["0" * 64] * len(rollouts))
    rollouts = rollouts.set_column(place, rollouts.schema.field(place), hashes)
    context.round.finish("rollout", 0, "rollouts", rollouts, inputs={})
    with pytest.raises(IntegrityError, match="do not have its token_hash"):
        stage.run(context, 0)


def test_hidden_states_of_a_broken_trunk_are_refused(ready):
    teacher = load_model(ready / "teacher")
    with torch.no_grad():
        teacher.model.norm.weight[3] = torch.inf
    with pytest.raises(UserError, match="the teacher's hidden states are NaN or infinite on .* tokens"):
        hidden_table(round_of(ready / "store").round.read("rollout", 0), teacher, "bfloat16", 4096)
