"""The engine on tiny models: against a dense pass, against `generate` for greedy decoding, in any batch."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config

from pipeline.rollout.engine import Sampling, stop_ids
from pipeline.rollout.transformers_engine import TransformersEngine
from storage.errors import UserError

torch.set_num_threads(1)

VOCABULARY = 120
SIZES = dict(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, bos_token_id=None,
             eos_token_id=None, pad_token_id=None)
FAMILIES = {
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True), "llama": LlamaConfig(**SIZES),
    "mistral, sliding": MistralConfig(**SIZES, sliding_window=8),
    "gemma2, sliding and full": Gemma2Config(**SIZES, head_dim=8, sliding_window=8),
}


def made_model(family: str = "qwen2", seed: int = 0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="sdpa").eval()


def made_prompts(count: int, samples: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    prompts = [rng.integers(0, VOCABULARY, 3 + 2 * (i % 5), dtype=np.int32) for i in range(count)]
    return [prompt for prompt in prompts for _ in range(samples)]


def settings(**changes) -> Sampling:
    return Sampling(**{"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 24, "vocabulary": VOCABULARY,
                       "stop_ids": (3, 5, 8), **changes})


def dense_logits(model, prompt, response):
    """Float32 logits [n, V] that the n response tokens were drawn from, in one pass, without a cache."""
    ids = torch.tensor([[*prompt.tolist(), *response.tolist()]])
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1:-1, :VOCABULARY].float()


def rollouts(generations) -> list[tuple]:
    return [(generations.tokens(i).tolist(), generations.finish_reasons[i])
            for i in range(len(generations.finish_reasons))]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_a_dense_pass_over_the_same_tokens(family):
    model, prompts, sampling = made_model(family), made_prompts(6, 2), settings(temperature=0.8)
    generations = TransformersEngine(model, 12).generate(prompts, range(12), sampling)
    for i, prompt in enumerate(prompts):
        response = generations.tokens(i)
        span = slice(generations.offsets[i], generations.offsets[i + 1])
        logits = dense_logits(model, prompt, response)
        rows = torch.arange(len(response))
        raw = logits.log_softmax(-1)[rows, response]
        np.testing.assert_allclose(generations.log_probs[span], raw, atol=1e-5)
        scaled = (logits / 0.8).log_softmax(-1)
        ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
        before = ordered.exp().double().cumsum(-1) - ordered.exp().double()
        mass = torch.where(before < 0.9, ordered.exp().double(), 0).sum(-1)
        expected = scaled[rows, response] - mass.log()
        np.testing.assert_allclose(generations.sampling_log_probs[span], expected, atol=1e-5)
        assert (before[ids == torch.from_numpy(response.astype(np.int64))[:, None]] < 0.9 + 1e-6).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_is_that_of_generate(family):
    model, prompts = made_model(family), made_prompts(5)
    greedy = TransformersEngine(model, 5).generate(prompts, range(5), settings(top_p=1e-9, vocabulary=128))
    for prompt, (tokens, reason) in zip(prompts, rollouts(greedy)):
        ids = torch.tensor(prompt[None].astype(np.int64))
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24,
                                  eos_token_id=[3, 5, 8], pad_token_id=0)
        assert tokens == expected[0, len(prompt):].tolist()
        assert reason == ("stop" if tokens[-1] in (3, 5, 8) else "length")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rollout_does_not_depend_on_the_batch_it_is_in(family):
    model, prompts, seeds = made_model(family), made_prompts(7, 3), np.arange(21) * 1_000_003
    whole = TransformersEngine(model, 21).generate(prompts, seeds, settings())
    assert len({len(tokens) for tokens, _ in rollouts(whole)}) > 2, "rows end at different times"
    expected = rollouts(whole)
    order = np.random.default_rng(1).permutation(21)
    shuffled = TransformersEngine(model, 4).generate([prompts[i] for i in order], seeds[order], settings())
    assert rollouts(shuffled) == [expected[i] for i in order]
    for i in range(21):
        alone = TransformersEngine(model, 1).generate([prompts[i]], seeds[i:i + 1], settings())
        assert rollouts(alone) == [expected[i]]
        span = slice(whole.offsets[i], whole.offsets[i + 1])
        np.testing.assert_allclose(alone.log_probs, whole.log_probs[span], atol=1e-5)


def test_tokens_at_a_models_state_are_drawn_as_often_as_its_nucleus_says():
    model, prompt, count = made_model(), made_prompts(2)[1], 8000
    generations = TransformersEngine(model, count).generate([prompt] * count, range(count),
                                                            settings(max_new_tokens=1, temperature=0.9))
    scaled = dense_logits(model, prompt, np.array([0]))[0].double() / 0.9
    log_probs, ids = scaled.log_softmax(-1).sort(descending=True)
    before = log_probs.exp().cumsum(-1) - log_probs.exp()
    nucleus = ids[before < 0.9].numpy()
    expected = log_probs[before < 0.9].softmax(-1).numpy() * count
    seen = np.bincount(generations.token_ids, minlength=VOCABULARY)
    assert seen[nucleus].sum() == count and len(nucleus) > 10
    large = expected >= 10
    chi2 = ((seen[nucleus][large] - expected[large]) ** 2 / expected[large]).sum()
    assert chi2 < large.sum() + 4 * np.sqrt(2 * large.sum())


def test_the_same_call_gives_the_same_bits():
    model, prompts = made_model(), made_prompts(6, 2)
    first, second = (TransformersEngine(model, 8).generate(prompts, range(12), settings()) for _ in range(2))
    for name in ("offsets", "token_ids", "log_probs", "sampling_log_probs"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_samples_of_a_prompt_differ_and_follow_their_seeds():
    model, prompts = made_model(), made_prompts(1, 8)
    texts = rollouts(TransformersEngine(model, 8).generate(prompts, range(8), settings()))
    assert len({tuple(tokens) for tokens, _ in texts}) > 4
    assert rollouts(TransformersEngine(model, 8).generate(prompts, range(7, -1, -1), settings())) == texts[::-1]


def test_a_rollout_ends_with_the_stop_token_it_drew_or_at_the_limit():
    generations = TransformersEngine(made_model(), 16).generate(made_prompts(16), range(16), settings())
    reasons = set()
    for tokens, reason in rollouts(generations):
        reasons.add(reason)
        assert not set(tokens[:-1]) & {3, 5, 8}
        assert tokens[-1] in (3, 5, 8) if reason == "stop" else len(tokens) == 24 and tokens[-1] not in (3, 5, 8)
    assert reasons == {"stop", "length"}


def test_a_stop_token_at_the_last_place_is_a_stop():
    model, prompts = made_model(), made_prompts(16)
    long = TransformersEngine(model, 16).generate(prompts, range(16), settings())
    i = next(i for i, (tokens, reason) in enumerate(rollouts(long)) if reason == "stop" and len(tokens) > 2)
    tokens = long.tokens(i).tolist()
    cut = TransformersEngine(model, 16).generate(prompts, range(16), settings(max_new_tokens=len(tokens)))
    assert rollouts(cut)[i] == (tokens, "stop")


def test_rows_of_a_padded_head_are_never_drawn_and_carry_no_probability():
    model = made_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[VOCABULARY:] *= 20  # tied: these rows would win
    generations = TransformersEngine(model, 8).generate(made_prompts(8), range(8), settings(stop_ids=()))
    assert generations.token_ids.max() < VOCABULARY
    logits = dense_logits(model, made_prompts(8)[0], generations.tokens(0))
    raw = logits.log_softmax(-1)[torch.arange(24), generations.tokens(0)]
    np.testing.assert_allclose(generations.log_probs[:24], raw, atol=1e-5)


def test_without_stop_tokens_every_rollout_reaches_the_limit():
    generations = TransformersEngine(made_model(), 3).generate(made_prompts(5), range(5), settings(stop_ids=()))
    assert [len(tokens) for tokens, _ in rollouts(generations)] == [24] * 5
    assert generations.finish_reasons == ("length",) * 5


def test_finished_rollouts_are_counted_upwards_to_all():
    seen = []
    TransformersEngine(made_model(), 4).generate(made_prompts(9), range(9), settings(),
                                                 lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (9, 9)


def test_a_student_whose_logits_are_nan_is_refused_in_one_line():
    model = made_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="NaN.*lower train.learning_rate") as error:
        TransformersEngine(model, 4).generate(made_prompts(4), range(4), settings())
    assert "\n" not in str(error.value)


def test_a_temperature_that_the_logits_do_not_stand_is_refused_in_one_line():
    for top_p in (0.9, 1.0):
        with pytest.raises(UserError, match="raise rollout.temperature") as error:
            TransformersEngine(made_model(), 4).generate(made_prompts(4), range(4),
                                                         settings(temperature=1e-40, top_p=top_p))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_the_least_temperature_of_the_config_gives_numbers(top_p):
    least = settings(temperature=1e-3, top_p=top_p)
    generations = TransformersEngine(made_model(), 4).generate(made_prompts(4), range(4), least)
    assert np.isfinite(generations.sampling_log_probs).all()


def test_deterministic_algorithms_are_enough():
    torch.use_deterministic_algorithms(True)
    try:
        TransformersEngine(made_model(), 4).generate(made_prompts(4), range(4), settings())
    finally:
        torch.use_deterministic_algorithms(False)


def test_stop_ids_are_the_tokenizers_and_the_generation_configs_within_the_vocabulary():
    assert stop_ids({"eos_token_id": 7, "generation_eos_token_id": [9, 7, 500]}, 100) == (7, 9)
    assert stop_ids({"eos_token_id": None, "generation_eos_token_id": 4}, 100) == (4,)
    assert stop_ids({"eos_token_id": None, "generation_eos_token_id": None}, 100) == ()
