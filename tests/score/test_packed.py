"""Packed passes against plain ones, one rollout at a time, of every family, and models that must not be packed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from pipeline.config.model import Score
from pipeline.models import trunk
from pipeline.score import packed, packed_attention
from pipeline.score.packed import PackedTrunk, why_padded
from pipeline.score.packed_attention import Packing
from pipeline.score.rows import TokenRows
from pipeline.score.scorer import score_rollouts, score_teacher
from pipeline.score.segments import Segments
from tests.score.dense_reference import as_table, dense_scores, make_rollouts, rollout
from tests.score.families import FAMILIES, tiny

TREES = Segments(np.array([7, 3, 12, 3, 4, 9, 2]), np.array([0, 0, 0, 0, 4, 5, 5]))
"""A prompt of 7 with samples of 3, 12 and 3; a prompt of 4 without samples; a prompt of 9 with a sample of 2."""


def siblings(vocabulary: int, *, samples: int = 4, seed: int = 0) -> list[dict]:
    """Prompts of 3, 11 and 6 tokens, each with `samples` rollouts of different lengths, one of them empty."""
    generator, rollouts = torch.Generator().manual_seed(seed), []
    for prompt, length in enumerate((3, 11, 6)):
        asked = torch.randint(vocabulary, (length,), generator=generator).tolist()
        for sample in range(samples):
            written = torch.randint(vocabulary, ((0, 9, 14, 1)[sample % 4] if prompt else 5 + sample,),
                                    generator=generator).tolist()
            rollouts.append(rollout(len(rollouts), prompt, sample, asked, written, "0" * 64, len(written) > 8))
    return rollouts


def plain_hidden(model, input_ids_T: torch.Tensor, segments: Segments) -> torch.Tensor:
    """Every segment behind its prompt, in a plain pass of its own."""
    found = []
    for start, length, prompt, before in zip(segments.start_S, segments.length_S, segments.prompt_S, segments.before_S):
        first = segments.start_S[prompt]
        ids = torch.cat([input_ids_T[first:first + before], input_ids_T[start:start + length]])
        with torch.inference_mode():
            found.append(trunk(model)(ids[None])[0, before:])
    return torch.cat(found)


@pytest.mark.parametrize("family, attention", [(family, attention) for family in FAMILIES for attention in (
    ("eager",) if family == "gemma2-softcap" else ("sdpa", "eager"))])  # transformers' sdpa leaves its caps out
def test_a_packed_pass_gives_the_hidden_states_of_plain_passes(family, attention):
    model = tiny(family, vocabulary=300, seed=1)
    model.set_attn_implementation(attention)
    ids_T = torch.randint(300, (int(TREES.length_S.sum()),), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        found = PackedTrunk(model, 64)(ids_T, Packing(TREES))
    assert why_padded(model) is None and model.config._attn_implementation == attention
    expected = plain_hidden(model, ids_T, TREES)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("family", ["qwen2-tied", "mistral-sliding"])
def test_a_padded_pass_gives_the_same(family, monkeypatch):
    model = tiny(family, vocabulary=300, seed=1)
    monkeypatch.setitem(packed._REASONS, model, "asked for by a test")
    ids_T = torch.randint(300, (int(TREES.length_S.sum()),), generator=torch.Generator().manual_seed(3))
    expected = plain_hidden(model, ids_T, TREES)
    for tokens in (1, 30, 1000):
        with torch.inference_mode():
            found = PackedTrunk(model, tokens)(ids_T, Packing(TREES))
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_that_share_a_prompt_are_scored_as_by_a_dense_float64_reference(family):
    student, teacher = tiny(family, vocabulary=300, seed=1), tiny(family, vocabulary=300, seed=2)
    rollouts, asked = siblings(300), Score(teacher_top_k=8, student_top_k=5, batch_tokens=48, head_rows=7)
    found = score_rollouts(as_table(rollouts), student, teacher, 300, asked).to_pylist()
    expected = dense_scores(rollouts, student.double(), teacher.double(), 300, 8, 5)
    assert len(found) == len(expected) > 50
    for ours, theirs in zip(found, expected):
        assert all(ours[name] == theirs[name] for name in ("rollout_id", "position", "teacher_topk_ids"))
        assert all(ours[name] == pytest.approx(theirs[name], abs=2e-5) for name in (
            "teacher_log_prob", "student_log_prob", "teacher_entropy", "student_log_tail"))


def test_the_teacher_alone_gives_the_bits_that_it_gives_beside_a_student():
    student, teacher = tiny("qwen2-tied", vocabulary=300, seed=1), tiny("llama-tied", vocabulary=300, seed=2)
    table, asked = as_table(siblings(300)), Score(teacher_top_k=8, student_top_k=5)
    both = score_rollouts(table, student, teacher, 300, asked)
    for name, values in score_teacher(table, teacher, 300, asked).items():
        assert values.tolist() == both[name].to_pylist()


def test_every_prompt_is_read_once_and_no_batch_is_larger_than_asked():
    rows = TokenRows(as_table(siblings(300)))
    batches = list(rows.batches(100))
    prompts = [batch.segments.length_S[batch.segments.before_S == 0].tolist() for batch in batches]
    assert sorted(sum(prompts, [])) == [3, 6, 11] and max(len(batch.input_ids_T) for batch in batches) <= 100
    assert sorted(np.concatenate([batch.row_R for batch in batches])) == list(range(len(rows)))


def test_the_longest_come_first():
    rollouts = siblings(300, samples=1) + make_rollouts([(30, 40), (2, 3), (8, 90), (5, 20)], 300, samples=1)
    rows = TokenRows(as_table([each | {"prompt_id": place, "rollout_id": place}
                               for place, each in enumerate(rollouts)]))
    for max_tokens in (1, 50, 1000):
        batches = [batch.segments for batch in rows.batches(max_tokens)]
        firsts = [(segments.length_S + segments.before_S)[segments.before_S > 0].tolist() for segments in batches]
        assert sum(firsts, []) == sorted(sum(firsts, []), reverse=True) and len(sum(firsts, [])) > 4


@given(st.integers(1, 80), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_batches_hold_every_row_once_behind_its_own_context(max_tokens, seed):
    rollouts = siblings(50, seed=seed) + [each | {"prompt_id": 9 + index, "rollout_id": 2000 + index}
                                          for index, each in enumerate(make_rollouts([(4, 6), (2, 0)], 50))]
    rows = TokenRows(as_table(rollouts))
    by_id, seen = {each["rollout_id"]: each for each in rollouts}, []
    for batch in rows.batches(max_tokens):
        keys, segments = batch.segments.keys(), batch.segments
        ends = np.cumsum(segments.length_S + segments.before_S)
        for place, row in zip(batch.hidden_index_R, batch.row_R):
            segment = np.searchsorted(segments.start_S, place, side="right") - 1
            cut = ends[segment] - segments.length_S[segment] + (place - segments.start_S[segment]) + 1
            first = ends[segment] - segments.length_S[segment] - segments.before_S[segment]
            written = by_id[rows.rollouts["rollout_id"][int(rows.rollout_N[row])].as_py()]
            context = written["prompt_tokens"] + written["response_tokens"][:rows.position_N[row]]
            assert batch.input_ids_T[keys[first:cut]].tolist() == context
            seen.append(int(row))
        alone = len(segments.length_S) <= 2
        assert len(batch.input_ids_T) <= max_tokens or alone
    assert sorted(seen) == list(range(len(rows)))


def test_the_arrays_of_the_varlen_kernel_describe_the_same_attention(monkeypatch):
    """The kernel runs on a GPU alone; here a slow one of the same arguments stands in its place."""
    def slow(query, key, value, starts_q, starts_k, most_q, most_k, *, scale, window_size):
        parts = []
        for q0, q1, k0, k1 in zip(starts_q, starts_q[1:], starts_k, starts_k[1:]):
            scores = torch.einsum("qhd,khd->hqk", query[q0:q1], key[k0:k1]) * scale
            ahead = torch.arange(k1 - k0) - torch.arange(q1 - q0)[:, None] - (k1 - k0) + (q1 - q0)
            hidden = (ahead > 0) | (ahead < -window_size[0] if window_size[0] >= 0 else False)
            parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value[k0:k1]))
            assert q1 - q0 <= most_q and k1 - k0 <= most_k
        return torch.cat(parts)

    import torch.nn.attention.varlen as kernels

    monkeypatch.setattr(kernels, "varlen_attn", slow)
    tokens, generator = int(TREES.length_S.sum()), torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(heads, tokens, 8, generator=generator) for heads in (4, 2, 2))
    for window in (None, 5):
        packing = Packing(TREES)
        expected, _ = packed_attention.attention(None, query[None], key[None], value[None], packing=packing,
                                                 scaling=0.3, sliding_window=window)
        found = packed_attention._varlen(query, key, value, packing, 0.3, window)
        torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-5)


def small(config_class, **options):
    return config_class(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                        num_key_value_heads=2, vocab_size=100, pad_token_id=0, **options)


def test_a_model_that_mixes_neighbours_outside_of_attention_is_padded():
    model = LlamaForCausalLM(small(LlamaConfig)).eval()
    layer = model.model.layers[0].mlp
    layer.register_forward_hook(lambda _, inputs, output: output + inputs[0].roll(1, 1).cumsum(1))
    assert "differ" in why_padded(model)


def test_a_model_whose_rotation_depends_on_the_longest_of_its_batch_is_padded():
    factors = [1.0] * 4
    model = Phi3ForCausalLM(small(Phi3Config, original_max_position_embeddings=64, max_position_embeddings=128,
                                  rope_scaling={"type": "longrope", "short_factor": factors,
                                                "long_factor": factors, "rope_theta": 1e4})).eval()
    assert why_padded(model) == "its rotation is longrope"
    sizes = []
    model.model.register_forward_hook(lambda _, arguments, options, output: sizes.append(options["input_ids"].shape[0]),
                                      with_kwargs=True)
    with torch.inference_mode():
        PackedTrunk(model, 1000)(torch.arange(int(TREES.length_S.sum())), Packing(TREES))
    assert sizes == [1] * 5


def test_a_model_that_keeps_its_window_from_attention_is_padded():
    model = LlamaForCausalLM(small(LlamaConfig)).eval()
    model.config.sliding_window = 5
    assert why_padded(model) == "its attention is not told the sliding window"


def test_a_model_with_attention_of_another_kind_in_some_layers_is_padded():
    model = LlamaForCausalLM(small(LlamaConfig)).eval()
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert why_padded(model) == "its layers are of type linear_attention"
