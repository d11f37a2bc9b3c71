"""Real vLLM on a CPU against transformers: tokens, log-probs, seeds, stops, padded heads, reloads, and their proof."""

import numpy as np
import pytest
import torch

from pipeline.config.engines import VllmEngine
from pipeline.models import load_model
from pipeline.rollout.engine import Sampling
from pipeline.rollout.proof import own_log_probs, prove
from pipeline.rollout.transformers_engine import TransformersEngine
from pipeline.rollout.vllm_engine import VllmRollouts
from pipeline.vllm.start import EngineFailed
from storage.errors import UserError
from tests.rollout.conftest import ENGINE

pytestmark = pytest.mark.timeout(240)

VOCABULARY = 259
SEEDS = np.arange(24) * 1_000_003


def made_prompts(count: int = 8, samples: int = 3, longest: int = 90) -> list[np.ndarray]:
    """Prompts of 3 tokens to several blocks of vLLM's cache, each `samples` times."""
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, 256, length, dtype=np.int32) for length in np.linspace(3, longest, count).astype(int)]
    return [prompt for prompt in prompts for _ in range(samples)]


def settings(**changes) -> Sampling:
    return Sampling(**{"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 24, "vocabulary": VOCABULARY,
                       "stop_ids": (3, 5, 8, 13, 21, 34, 55, 89), **changes})


def rollouts(generations) -> list[tuple]:
    return [(generations.tokens(i).tolist(), generations.finish_reasons[i])
            for i in range(len(generations.finish_reasons))]


def dense_logits(model, prompt, response):
    """Float32 logits [n, V] that the n response tokens were drawn from, in one pass, without a cache."""
    ids = torch.tensor([[*prompt.tolist(), *response.tolist()]])
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1:-1, :VOCABULARY].float()


def test_greedy_rollouts_are_those_of_transformers_token_for_token(vllm_engine, students):
    prompts, greedy = made_prompts(16, 1), settings(top_p=1e-9, max_new_tokens=64, stop_ids=(2,))
    theirs = TransformersEngine(load_model(students[0]), 16).generate(prompts, range(16), greedy)
    ours = vllm_engine(students[0]).generate(prompts, range(16), greedy)
    assert rollouts(ours) == rollouts(theirs)
    assert (ours.sampling_log_probs == 0).all()
    np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=1e-5)


@pytest.mark.parametrize("temperature, top_p", [(1.0, 0.9), (0.7, 1.0), (1.3, 0.5)])
def test_sampled_rollouts_of_a_seed_are_those_of_transformers(vllm_engine, students, temperature, top_p):
    sampling = settings(temperature=temperature, top_p=top_p)
    theirs = TransformersEngine(load_model(students[0]), 24).generate(made_prompts(), SEEDS, sampling)
    ours = vllm_engine(students[0]).generate(made_prompts(), SEEDS, sampling)
    assert rollouts(ours) == rollouts(theirs) and len({len(tokens) for tokens, _ in rollouts(ours)}) > 4
    np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=1e-5)
    np.testing.assert_allclose(ours.sampling_log_probs, theirs.sampling_log_probs, atol=1e-5)


def test_log_probs_are_raw_over_the_shared_vocabulary_and_those_of_the_nucleus(vllm_engine, students):
    prompts, model = made_prompts(), load_model(students[0])
    generations = vllm_engine(students[0]).generate(prompts, SEEDS, settings(temperature=0.8))
    for i, prompt in enumerate(prompts):
        response, span = generations.tokens(i), slice(generations.offsets[i], generations.offsets[i + 1])
        logits, rows = dense_logits(model, prompt, response), torch.arange(len(response))
        raw = logits.log_softmax(-1)[rows, response]
        np.testing.assert_allclose(generations.log_probs[span], raw, atol=1e-5)
        ordered, ids = (logits.double() / 0.8).log_softmax(-1).sort(dim=-1, descending=True, stable=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        drawn = ids == torch.from_numpy(response.astype(np.int64))[:, None]
        expected = ordered[drawn] - torch.where(before < 0.9, ordered.exp(), 0).sum(-1).log()
        np.testing.assert_allclose(generations.sampling_log_probs[span], expected, atol=1e-5)
        assert (before[drawn] < 0.9 + 1e-6).all(), "a token outside the nucleus"


def test_rows_of_a_padded_head_are_never_drawn(vllm_engine, students):
    prompts = made_prompts()
    with torch.no_grad():
        whole = load_model(students[0])(torch.tensor(prompts[-1][None].astype(np.int64))).logits[0, -1]
    assert whole.argmax() >= VOCABULARY, "these rows would win"
    generations = vllm_engine(students[0]).generate(prompts, SEEDS, settings(top_p=1.0, stop_ids=()))
    assert generations.token_ids.max() < VOCABULARY
    assert [len(tokens) for tokens, _ in rollouts(generations)] == [24] * 24


def test_a_rollout_does_not_depend_on_the_batch_it_is_in(vllm_engine, students):
    engine, prompts = vllm_engine(students[0]), made_prompts()
    whole = engine.generate(prompts, SEEDS, settings())
    order = np.random.default_rng(1).permutation(24)
    shuffled = engine.generate([prompts[i] for i in order], SEEDS[order], settings())
    assert rollouts(shuffled) == [rollouts(whole)[i] for i in order]
    for i in (0, 9, 23):
        alone = engine.generate([prompts[i]], SEEDS[i:i + 1], settings())
        assert rollouts(alone) == [rollouts(whole)[i]]
        np.testing.assert_allclose(alone.log_probs, whole.log_probs[whole.offsets[i]:whole.offsets[i + 1]], atol=1e-5)


def test_more_rollouts_than_are_decoded_together_wait_their_turn(vllm_engine, students):
    prompts, seen = made_prompts(8, 12), []
    ours = vllm_engine(students[0]).generate(prompts, range(96), settings(), lambda *done: seen.append(done))
    theirs = TransformersEngine(load_model(students[0]), 96).generate(prompts, range(96), settings())
    assert rollouts(ours) == rollouts(theirs)
    assert seen == sorted(seen) and seen[-1] == (96, 96) and len(seen) > 2


def test_a_rollout_ends_with_the_stop_token_it_drew_or_at_the_limit(vllm_engine, students):
    engine, prompts = vllm_engine(students[0]), made_prompts()
    generations = engine.generate(prompts, SEEDS, settings(top_p=1.0))
    stops, reasons = settings().stop_ids, set()
    for tokens, reason in rollouts(generations):
        reasons.add(reason)
        assert not set(tokens[:-1]) & set(stops)
        assert tokens[-1] in stops if reason == "stop" else len(tokens) == 24 and tokens[-1] not in stops
    assert reasons == {"stop", "length"}
    i = next(i for i, (tokens, reason) in enumerate(rollouts(generations)) if reason == "stop" and len(tokens) > 2)
    length = len(generations.tokens(i))
    cut = engine.generate(prompts, SEEDS, settings(top_p=1.0, max_new_tokens=length))
    assert rollouts(cut)[i] == (generations.tokens(i).tolist(), "stop")


def test_a_reload_brings_the_other_checkpoints_log_probs_the_tied_head_included(vllm_engine, students):
    prompts = made_prompts(6, 1)
    responses = [np.random.default_rng(9).integers(0, 256, 20, dtype=np.int32) for _ in prompts]
    expected = [own_log_probs(model_of(folder), folder, prompts, responses, VOCABULARY) for folder in students[:2]]
    assert np.abs(expected[0] - expected[1]).mean() > 1
    pids = vllm_engine(students[0]).pids
    for number in (0, 1, 0, 1):
        engine = vllm_engine(students[number])
        assert engine.pids == pids, "one process, kept"
        np.testing.assert_allclose(engine.log_probs(prompts, responses, VOCABULARY)[0], expected[number], atol=2e-5)


def test_a_reload_forgets_the_cached_prefixes(vllm_engine, students):
    prompts, engine = made_prompts(4, 6, longest=200), vllm_engine(students[0])
    first = engine.generate(prompts, SEEDS, settings())
    again = engine.generate(prompts, SEEDS, settings())
    assert rollouts(first) == rollouts(again)
    engine = vllm_engine(students[1])
    theirs = TransformersEngine(load_model(students[1]), 24).generate(prompts, SEEDS, settings())
    ours = engine.generate(prompts, SEEDS, settings())
    assert rollouts(ours) == rollouts(theirs)
    np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=1e-5)


def test_new_weights_are_proved_on_the_first_rollouts_written_under_them(vllm_engine, students):
    vllm_engine(students[0]).generate(made_prompts(), SEEDS, settings())
    engine = vllm_engine(students[1])
    assert engine.proof is None
    engine.generate(made_prompts(), SEEDS, settings())
    proof = engine.proof
    assert 0 <= proof["log_prob_difference"] <= proof["largest"] < 1e-5 and proof["moved"] > 0.1
    assert proof["rollouts"] == 4 and 4 <= proof["tokens"] <= 96
    engine.generate(made_prompts(), SEEDS, settings())
    assert engine.proof is proof, "once per load"


def test_the_proof_refuses_log_probs_of_the_old_weights(vllm_engine, students):
    prompts = made_prompts(4, 1)
    written = vllm_engine(students[0]).generate(prompts, SEEDS[:4], settings())
    responses = [written.tokens(i) for i in range(4)]
    prove(model_of(students[0]), students[0], prompts, responses, written.log_probs, VOCABULARY)
    with pytest.raises(EngineFailed, match="does not have the weights in .*student-2.* run the same command") as error:
        prove(model_of(students[1]), students[1], prompts, responses, written.log_probs, VOCABULARY)
    assert "\n" not in str(error.value)


def test_a_student_whose_logits_are_nan_is_refused_in_one_line(vllm_engine, students):
    with pytest.raises(UserError, match="NaN.*lower train.learning_rate"):
        vllm_engine(students[2]).generate(made_prompts(), SEEDS, settings())


def test_a_prompt_that_does_not_fit_is_refused_and_the_engine_goes_on(vllm_engine, students):
    engine = vllm_engine(students[0])
    with pytest.raises(UserError, match="a prompt of 4090 tokens and 24 new ones do not fit the engine's 4096: raise"):
        engine.generate([np.zeros(4090, np.int32)], [0], settings())
    assert engine.alive and len(engine.generate(made_prompts(), SEEDS, settings()).token_ids)


def test_an_engine_says_what_it_is_and_caches_prefixes(vllm_engine, students):
    engine = vllm_engine(students[0])
    assert engine.name_and_version == f"vllm 0.32.0 (cpu), torch {torch.__version__}"
    assert engine.ready["prefix_caching"] is True


def test_an_engine_that_was_killed_is_told_in_one_line_and_started_again(vllm_engine, students):
    import os
    import signal

    engine = vllm_engine(students[0])
    engine.generate(made_prompts(), SEEDS, settings())
    os.kill(engine.pids[0], signal.SIGKILL)
    with pytest.raises(EngineFailed, match="died .killed, perhaps for want of memory.* run the same command") as error:
        engine.generate(made_prompts(), SEEDS, settings())
    assert "\n" not in str(error.value) and not isinstance(error.value, UserError)
    engine = vllm_engine(students[0])
    engine.generate(made_prompts(), SEEDS, settings())
    engine.folder = students[1]  # what a reload that changes nothing looks like
    with pytest.raises(EngineFailed, match="goes on with the weights of .*student-2 after a reload of .*student-1"):
        engine.reload(students[0])
    assert not engine.alive


def test_two_engines_side_by_side_share_the_prompts_and_both_take_new_weights(vllm_engine, students):
    both = VllmRollouts(VllmEngine(**ENGINE, data_parallel=2), model_of(students[0]), students[0])
    try:
        assert len(set(both.pids)) == 2
        for student in students[:2]:
            if student != students[0]:
                both.reload(student)
            theirs = TransformersEngine(load_model(student), 24).generate(made_prompts(), SEEDS, settings())
            assert rollouts(both.generate(made_prompts(), SEEDS, settings())) == rollouts(theirs)
        assert both.proof["moved"] > 1e-3 and both.proof["log_prob_difference"] < 1e-5
    finally:
        both.close()


def model_of(folder):
    from pipeline.config.model import Model

    return Model(path=str(folder))
