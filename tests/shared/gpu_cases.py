"""Every stage's computation on tensors that say `cuda`: run by test_without_a_gpu.py in a process of its own.

    pytest -p tests.pretend_cuda tests/shared/gpu_cases.py
"""

import re
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig, Qwen2Config, Qwen3Config

from benchmarks import gpu_checks, gpu_models, gpu_support_head
from benchmarks.gpu_tools import Bench, random_rollouts
from pipeline import objectives, stages
from pipeline.config import load_config
from pipeline.config.model import SampledToken, TailBucketTopK, TeacherTopKLsm
from pipeline.config.score import Score
from pipeline.config.train import Train
from pipeline.context import open_context
from pipeline.distinct import distinct_writes
from pipeline.models import load_model
from pipeline.rollout.engine import Sampling
from pipeline.rollout.transformers_engine import TransformersEngine
from pipeline.score.scorer import score_rollouts
from pipeline.start import start_run
from pipeline.train import teacher as teachers
from pipeline.train.attention import use_packing
from pipeline.train.optimizer import adamw, state_tensors
from pipeline.train.parallel import OneProcess
from pipeline.train.reader import join
from pipeline.train.session import train_round
from pipeline.train.student import Student
from pipeline.train.trainer import Trainer
from storage.errors import UserError
from tests.pretend_cuda import pretend_cuda
from tests.tiny import make_tiny
from tests.train.scored import scored_store
from tests.train.tables import made_up_round

SHAPE = dict(vocab_size=48, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=512, initializer_range=0.1, pad_token_id=None)
HALF = {"precision": "bfloat16", "gradient_checkpointing": True}
COLUMNS = ("teacher_log_prob", "teacher_entropy", "teacher_log_tail", "student_log_prob", "student_entropy")


@pytest.fixture(autouse=True)
def as_a_stage_computes():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")


def model(seed=4, layers=2, dtype=torch.float32, config=Qwen2Config, attention="sdpa", **changes):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config(**SHAPE, num_hidden_layers=layers, **changes), dtype=dtype,
                                            attn_implementation=attention).eval()


def steps(device: str, objective, layers=2, **settings):
    """(losses, the trainer after a round)."""
    settings = Train(**{"micro_batch_tokens": 90, "learning_rate": 1e-3, "warmup_steps": 0, "drift_fuse": None,
                        "rollouts_per_step": 5, **settings})
    trained = model(layers=layers).to(device)
    packed = use_packing(trained, settings.packing, settings.precision, "sdpa")
    student = Student(trained, precision=settings.precision, gradient_checkpointing=settings.gradient_checkpointing)
    optimizer = adamw(trained, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    trainer = Trainer(student, optimizer, objectives.build(objective, settings.reduction), settings,
                      join(*made_up_round(11, 3, longest=60), "here"), grid=32, packed=packed)
    losses = [row["loss"] for row in trainer.train_round(3, 0, lambda *_: None)]
    return [*losses, trainer.closing()["drift"]], trainer


@pytest.mark.parametrize("objective, settings", [
    (TeacherTopKLsm(), {}), (TeacherTopKLsm(), HALF), (TailBucketTopK(), HALF),
    (SampledToken(), {"reduction": "sequence_mean", **HALF})], ids=str)
def test_training_stays_on_the_device_and_computes_what_a_cpu_does(objective, settings):
    expected, _ = steps("cpu", objective, **settings)
    with pretend_cuda():
        found, trainer = steps("cuda", objective, **settings)
        states = [value for state in trainer.optimizer.state.values() for value in state.values()]
        gradients = [parameter.grad for parameter in trainer.student.model.parameters()]
        assert {each.device.type for each in [*states, *gradients]} == {"cuda"} and len(states) == 3 * len(gradients)
        assert trainer._packed == ("precision" in settings)
    assert found == pytest.approx(expected, rel=2e-2 if settings else 1e-4)


@pytest.mark.parametrize("settings", [{}, HALF], ids=str)
def test_how_often_training_waits_for_the_device_does_not_depend_on_the_depth_of_the_model(settings):
    waits = []
    for layers in (1, 3):
        with pretend_cuda() as gpu:
            steps("cuda", TeacherTopKLsm(), layers, **settings)
        waits.append({place: count for place, count in gpu.waits.items() if "outside" not in place})
    assert waits[0] == waits[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [{}, {"config": MistralConfig, "sliding_window": 5},
                                  {"config": Gemma2Config, "head_dim": 8, "sliding_window": 4, "attention": "eager"}],
                         ids=str)
def test_scoring_never_waits_for_the_device_and_computes_what_a_cpu_does(kind, dtype):
    table = random_rollouts(3, 2, 6, 12, SHAPE["vocab_size"])
    settings = Score(teacher_top_k=8, student_top_k=4, batch_tokens=64, head_rows=16)
    pair = [model(seed, dtype=dtype, **kind) for seed in (1, 2)]
    expected = score_rollouts(table, *pair, SHAPE["vocab_size"], settings)
    with pretend_cuda() as gpu:
        pair = [model(seed, dtype=dtype, **kind).to("cuda") for seed in (1, 2)]
        score_rollouts(table, *pair, SHAPE["vocab_size"], settings)  # tries once per model whether it can be packed
        gpu.waits.clear()
        found = score_rollouts(table, *pair, SHAPE["vocab_size"], settings)
        assert not gpu.waits
    for name in COLUMNS:
        difference = np.abs(found[name].to_numpy() - expected[name].to_numpy()).max()
        assert difference < (1e-5 if dtype == torch.float32 else 0.1), name


def test_decoding_draws_what_a_cpu_draws_and_waits_three_times_per_token():
    prompts = [np.arange(1, 4 + i % 3, dtype=np.int32) for i in range(5)]
    sampling = Sampling(temperature=0.8, top_p=0.9, max_new_tokens=9, stop_ids=(5, 6), vocabulary=SHAPE["vocab_size"])
    expected = TransformersEngine(model(), 8).generate(prompts, range(5), sampling)
    with pretend_cuda() as gpu:
        engine = TransformersEngine(model().to("cuda"), 8)
        gpu.waits.clear()
        found = engine.generate(prompts, range(5), sampling)
    assert np.array_equal(found.token_ids, expected.token_ids)
    assert np.abs(found.log_probs - expected.log_probs).max() < 1e-5
    each_token = sum(count for place, count in gpu.waits.items() if "sampling.py" in place)
    assert 0 < each_token <= 2 * sampling.max_new_tokens


@pytest.mark.parametrize("changes", [
    {"train.precision": "bfloat16", "train.lora.rank": 4, "train.lora.alpha": 8},
    {"train.precision": "bfloat16", "objective.type": "full_vocabulary", "objective.teacher": "live"}],
    ids=["adapter", "live teacher"])
def test_a_round_is_opened_and_trained_on_the_device_there_is(changes, tmp_path, monkeypatch):
    if "train.lora.rank" in changes:
        pytest.importorskip("peft")
    monkeypatch.setattr(teachers, "checked_teacher", lambda context: load_model(tmp_path / "teacher"))
    store = str(scored_store(tmp_path, **changes))
    expected = train_round(open_context(store, "tiny", 0, lambda *_: None), OneProcess()).steps["loss"].to_pylist()
    with pretend_cuda():
        trained = train_round(open_context(store, "tiny", 0, lambda *_: None), OneProcess())
        student = trained.trainer.student
        assert {each.device.type for each in student.model.parameters()} == {"cuda"} and trained.trainer._packed
        state = state_tensors(trained.trainer.optimizer, student.weights, trained.trainer.run_steps)
        assert {each.device.type for each in state.values()} == {"cpu"}
        assert torch.get_float32_matmul_precision() == "high"
    assert trained.steps["loss"].to_pylist() == pytest.approx(expected, rel=2e-2)


def test_a_round_is_played_on_it_from_its_prompts_to_its_loss(tmp_path):
    def play(folder):
        folder.mkdir()
        config = load_config(make_tiny(folder, **{"score.teacher_hidden_states": "float8",
                                                  "objective.type": "full_vocabulary"}))
        start_run(config)
        context = open_context(str(folder / "store"), "tiny", 0, lambda *_: None)
        stages.plan(context)
        for stage in ("prompts", "rollout", "score", "hidden", "mask"):
            for shard in context.round.shard_indices(stage):
                stages.run_shard(context, stage, shard)
        tokens = [context.round.read("rollout", shard)["response_tokens"].to_pylist() for shard in range(4)]
        return tokens, train_round(context, OneProcess()).steps["loss"].to_pylist()

    expected_tokens, expected = play(tmp_path / "cpu")
    with pretend_cuda():
        tokens, losses = play(tmp_path / "gpu")
    assert tokens == expected_tokens and losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("changes, precision, capability, why", [
    ({}, "float32", (9, 0), "train.precision = 'bfloat16'"), ({"head_dim": 12}, "bfloat16", (9, 0), "here 12"),
    ({}, "bfloat16", (7, 5), "compute capability 8.0")], ids=["float32", "odd heads", "old GPU"])
def test_rollouts_are_padded_where_the_kernel_of_packed_ones_does_not_fit(changes, precision, capability, why):
    with pretend_cuda(), mock.patch("torch.cuda.get_device_capability", lambda *_: capability):
        trained = model(config=Qwen3Config, **{"head_dim": 8, **changes}).to("cuda")
        assert not use_packing(trained, "auto", precision, "sdpa")
        with pytest.raises(UserError, match=re.escape(why)):
            use_packing(trained, "packed", precision, "sdpa")


def test_memory_that_does_not_suffice_is_one_line_with_what_to_change():
    with pretend_cuda(largest=30_000), pytest.raises(UserError) as error:
        steps("cuda", TeacherTopKLsm(), micro_batch_tokens=2000)
    said = str(error.value)
    assert "CUDA out of memory. Tried to allocate 9.00 GiB; set train.gradient_checkpointing = true, lower " in said
    assert "train.micro_batch_tokens (2000)" in said and "\n" not in said


ABSENT = ("Triton", "trainer sharded by FSDP2", "training 0.5B, layers compiled")


def test_the_benchmark_of_a_gpu_runs_on_it():
    """Its branches that a CPU does not take, but for Triton, NCCL and the compiler."""
    seen = mock.patch.multiple(torch.cuda, synchronize=lambda *_: None, empty_cache=lambda: None,
                               reset_peak_memory_stats=lambda: None, memory_allocated=lambda: 0,
                               max_memory_allocated=lambda: 0, get_device_name=lambda *_: "NVIDIA H200")
    with pretend_cuda(), seen:
        bench = Bench(torch.device("cuda"), tiny=True)
        figures = [figure for section in (gpu_checks.cases, gpu_support_head.cases, gpu_models.scoring_cases,
                                          gpu_models.training_cases)
                   for name, case in section(bench) if name not in ABSENT
                   for figure in case()]
    missed = {figure.name for figure in figures if figure.verdict == "missed"}
    assert missed <= {"scoring 0.5B: loop / ours"} and len(figures) > 60
    assert bench.notes["paste"].startswith('    "H200": Rates(')


def test_kernels_that_sort_first_are_left_out_only_while_places_are_distinct_and_only_on_a_gpu():
    with pretend_cuda():
        with pytest.raises(KeyError), distinct_writes(torch.zeros(2, device="cuda")):
            assert not torch.are_deterministic_algorithms_enabled()
            raise KeyError
        assert torch.are_deterministic_algorithms_enabled()
        with distinct_writes(torch.zeros(2)):
            assert torch.are_deterministic_algorithms_enabled()


def test_what_a_gpu_refuses_is_refused():
    with pretend_cuda() as gpu:
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        for refused in (lambda: here + there, lambda: there.cumsum(0), lambda: there.numpy(),
                        lambda: torch.bincount(there.long(), weights=there)):
            with pytest.raises((RuntimeError, TypeError)):
                refused()
        gpu.waits.clear()
        assert there.sum().item() == 3 and there.to("cpu").tolist() == [1, 1, 1] and sum(gpu.waits.values()) == 2
