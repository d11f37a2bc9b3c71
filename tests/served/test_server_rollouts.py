"""Rollouts by a real vLLM server, against full logits in float64; and servers that hold other weights or die."""

import re

import numpy as np
import pytest
import torch

from pipeline import stages
from pipeline.config.engines import VllmServer
from pipeline.config.model import Model
from pipeline.models import load_model
from pipeline.rollout.engine import Sampling, open_engine
from pipeline.rollout.server_engine import ServerEngine, check_server
from storage.errors import UserError
from tests.served.conftest import KEY_ENV, NAME, begin
from tests.served.raw_server import answer, relaying, saying

pytestmark = pytest.mark.timeout(400)
PROMPTS = [np.array([40, 41, 42, 43 + i], np.int32) for i in range(3)] + [np.array([40, 41, 42, 43], np.int32)]
SEEDS = [11, 12, 13, 14]
STOPS, VOCABULARY = (2,), 259


def settings(server, **changes):
    return VllmServer(**{"url": server.url, "model": NAME, "api_key_env": KEY_ENV, "retries": 1} | changes)


def engine(server, folder, **changes):
    return ServerEngine(settings(server, **changes), Model(path=str(folder)), folder)


def sampling(temperature=1.0, top_p=1.0, tokens=24):
    return Sampling(temperature, top_p, tokens, VOCABULARY, STOPS)


def dense(folder, prompt, tokens, temperature, top_p):
    """(raw, sampling) log-probs of the drawn tokens, from full logits in float64."""
    with torch.no_grad():
        logits = load_model(folder)(torch.tensor([[*prompt.tolist(), *tokens.tolist()]])).logits[0].double()
    at = slice(len(prompt) - 1, len(prompt) + len(tokens) - 1)
    drawn = torch.tensor(tokens.tolist())[:, None]
    raw = logits[at].log_softmax(-1)
    scaled, order = (logits[at] / temperature).softmax(-1).sort(descending=True)
    kept = torch.where(scaled.cumsum(-1) - scaled < top_p, scaled, 0.0)
    nucleus = torch.zeros_like(kept).scatter(1, order, kept / kept.sum(-1, keepdim=True))
    return raw.gather(1, drawn)[:, 0].numpy(), nucleus.gather(1, drawn)[:, 0].log().numpy()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8)])
def test_both_log_probs_of_every_token_are_those_of_full_logits(vllm_server, temperature, top_p):
    folder = vllm_server.hold("student")
    drawn = engine(vllm_server, folder).generate(PROMPTS, SEEDS, sampling(temperature, top_p))
    for i, prompt in enumerate(PROMPTS):
        part = slice(drawn.offsets[i], drawn.offsets[i + 1])
        raw, density = dense(folder, prompt, drawn.tokens(i), temperature, top_p)
        assert np.abs(drawn.log_probs[part] - raw).max() < 1e-4
        assert np.abs(drawn.sampling_log_probs[part] - density).max() < 1e-4


def test_a_rollout_depends_on_its_own_prompt_and_seed_alone(vllm_server):
    folder = vllm_server.hold("student")
    together = engine(vllm_server, folder).generate(PROMPTS, SEEDS, sampling())
    alone = engine(vllm_server, folder, concurrency=1).generate(PROMPTS[::-1], SEEDS[::-1], sampling())
    for i in range(4):
        assert together.tokens(i).tolist() == alone.tokens(3 - i).tolist()
    assert together.tokens(0).tolist() != together.tokens(3).tolist()  # the same prompt under another seed


def test_greedy_rollouts_are_those_of_full_logits(vllm_server):
    folder = vllm_server.hold("teacher")
    drawn = engine(vllm_server, folder).generate(PROMPTS[:2], SEEDS[:2], sampling(top_p=1e-6))
    model = load_model(folder)
    for i, prompt in enumerate(PROMPTS[:2]):
        tokens = prompt.tolist()
        while len(tokens) < len(prompt) + 24 and (tokens[-1] not in STOPS or len(tokens) == len(prompt)):
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1, :VOCABULARY].argmax()))
        assert drawn.tokens(i).tolist() == tokens[len(prompt):]


def test_a_rollout_ends_at_our_stop_tokens_and_keeps_the_token(vllm_server):
    folder = vllm_server.hold("student")
    stops = tuple(range(3, 100))
    drawn = engine(vllm_server, folder).generate(PROMPTS, SEEDS, Sampling(1.0, 1.0, 24, VOCABULARY, stops))
    ended = [i for i, reason in enumerate(drawn.finish_reasons) if reason == "stop"]
    assert ended
    for i in range(4):
        found = np.isin(drawn.tokens(i), stops)
        assert not found[:-1].any() and found[-1] == (i in ended)


def test_old_weights_are_refused_and_a_reload_brings_the_new_ones(vllm_server):
    vllm_server.hold("student")
    teacher = vllm_server.models["teacher"]
    with pytest.raises(UserError, match="does not hold the weights.*reload = 'rpc'"):
        engine(vllm_server, teacher).generate(PROMPTS, SEEDS, sampling())
    reloaded = engine(vllm_server, teacher, reload="rpc")
    drawn = reloaded.generate(PROMPTS, SEEDS, sampling())
    assert reloaded.proof["log_prob_difference"] < 1e-4 and reloaded.proof["tokens"] > 4
    raw, _ = dense(teacher, PROMPTS[0], drawn.tokens(0), 1.0, 1.0)
    assert np.abs(drawn.log_probs[:drawn.offsets[1]] - raw).max() < 1e-4


def test_a_server_that_changes_its_weights_between_two_shards_is_refused(vllm_server):
    vllm_server.hold("student")
    writing = engine(vllm_server, vllm_server.models["student"])
    writing.generate(PROMPTS, SEEDS, sampling())
    vllm_server.hold("teacher")
    with pytest.raises(UserError, match="changed its weights while it wrote.*nothing of this shard was kept"):
        writing.generate(PROMPTS, SEEDS, sampling())
    assert not writing.alive


def test_a_wrong_name_and_a_wrong_key_are_one_line_each(vllm_server, monkeypatch):
    folder = vllm_server.models["student"]
    check_server(settings(vllm_server))
    for opened in (check_server, lambda other: engine(vllm_server, folder, model=other.model)):
        with pytest.raises(UserError, match=f"does not serve 'other', it serves {NAME}"):
            opened(settings(vllm_server, model="other"))
    with pytest.raises(UserError, match="wants an API key"):
        engine(vllm_server, folder, api_key_env=None)
    monkeypatch.setenv(KEY_ENV, "wrong")
    with pytest.raises(UserError, match="does not accept the key"):
        engine(vllm_server, folder)


def test_a_prompt_too_long_for_the_server_is_one_line_and_nothing_is_drawn(vllm_server):
    """Its window is 512. Under a nucleus a second request asks for one token behind prompt and response."""
    folder, prompt = vllm_server.hold("student"), [np.arange(3, 259).repeat(2)[:500]]
    assert engine(vllm_server, folder).generate(prompt, [1], sampling(tokens=12)).finish_reasons[0]
    assert engine(vllm_server, folder).generate(prompt, [1], sampling(0.7, tokens=11)).finish_reasons[0]
    for temperature, tokens in ((1.0, 13), (0.7, 12)):
        opened = engine(vllm_server, folder)
        with pytest.raises(UserError, match="takes 512 tokens, a prompt of 500.* need 513: .*--max-model-len 513"):
            opened.generate(prompt, [1], sampling(temperature, tokens=tokens))
        assert opened.proof is None
    opened.client.window = None  # a server that does not tell its window
    with pytest.raises(UserError, match="ended after 12 of 24 tokens.*max-model-len"):
        opened.generate(prompt, [1], sampling())


def test_shards_of_a_round_come_from_the_server_and_die_with_it_until_it_is_back(vllm_server, tmp_path):
    vllm_server.hold("student")
    with relaying(vllm_server.port, 24) as (url, dead, revive):
        context = begin(tmp_path, vllm_server, "rollout.engine.type=vllm_server", f"rollout.engine.url={url}",
                        f"rollout.engine.model={NAME}", f"rollout.engine.api_key_env={KEY_ENV}",
                        "rollout.engine.retries=1", "rollout.engine.concurrency=1")
        finished = []
        with pytest.raises(UserError, match="rollout server.*does not answer.*same command goes on"):
            for shard in range(4):
                stages.run_shard(context, "rollout", shard)
                finished.append(shard)
        assert dead.is_set() and 0 < len(finished) < 4
        assert [receipt.shard for receipt in context.round.receipts("rollout")] == finished
        before = context.round.read("rollout", 0)
        revive()
        for shard in range(4):
            stages.run_shard(context, "rollout", shard)
    assert context.round.read("rollout", 0).equals(before)
    assert before["engine"].to_pylist() == ["vllm server 0.32.0"] * before.num_rows
    proofs = [each["engine_proof"] for each in context.round.timings() if each["stage"] == "rollout"]
    assert len(proofs) == 4 and all(proof["log_prob_difference"] < 1e-4 for proof in proofs)


def test_a_server_with_raw_log_probs_is_refused_under_a_nucleus(tmp_path):
    said = {"GET /v1/models": {"data": [{"id": NAME}]}, "GET /version": {"version": "0.32.0"}, "POST /v1/completions": {
        "choices": [{"prompt_token_ids": [1, 2], "logprobs": {"top_logprobs": [{"a": -0.5, "b": -1.5}]}}]}}
    with saying(lambda _, asked, __: answer(said[asked])) as (url, log):
        opened = ServerEngine(VllmServer(url=url, model=NAME), Model(path=str(tmp_path)), tmp_path)
        opened.proof = {"tokens": 1}  # as after an earlier shard
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(UserError, match=re.escape("--logprobs-mode processed_logprobs")):
            opened.generate([np.array([1, 2])], [0], sampling(top_p=0.9))
    assert len(log) == 3


def test_open_engine_knows_the_server(vllm_server):
    folder = vllm_server.hold("student")
    opened = open_engine(settings(vllm_server), Model(path=str(folder)), folder)
    assert opened.name_and_version == "vllm server 0.32.0"


def test_a_run_does_not_begin_without_its_rollout_server(tmp_path):
    with pytest.raises(UserError, match="rollout server http://127.0.0.1:9 does not answer"):
        begin(tmp_path, None, "rollout.engine.type=vllm_server", "rollout.engine.url=http://127.0.0.1:9",
              "rollout.engine.model=m", "rollout.engine.retries=0")
    assert not (tmp_path / "store").exists()
