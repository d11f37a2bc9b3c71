"""The scorer against what others do for the teacher's columns, everything from one run, interleaved, medians:

    python -m benchmarks.scorer [--threads 1] [--repeats 3] [--layers 6]      (about three minutes, 6 GB of memory)

Two Qwen2-shaped models (d 896, V 151,936, tied head, random weights, bfloat16) and random tokens, K = 32, k = 16. Shape
`short`: 4 samples of 128 tokens for one prompt of 128; `long`: 8 samples of 128 for one prompt of 512.

    loop       plain transformers: logits of all rows, log_softmax in float32, topk
    chunked    the head on response rows alone, logsumexp, torch.topk
    vllm       `prompt_logprobs` = 32 in dict and in flat form, the same weights, its own process, prefix caching off
    ours       the teacher's columns alone, and both sides' columns with what the student is asked

Also: where our time goes; the host's processor time per token (objects, copies, Arrow, gates, Parquet) over 8,192
tokens of a small model, whose vocabulary that cost does not depend on; and how memory grows with rollouts. Without vLLM
its comparison is skipped and its target is not measured. Writes benchmarks/results/scorer.json.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.report import Target, finish
from benchmarks.scorer_peers import chunked_head, full_logits
from benchmarks.scorer_vllm import VllmProcess
from pipeline.config.model import Score
from pipeline.score.gates import check_scores
from pipeline.score.scorer import Scorer, Side, score_rollouts, score_teacher
from storage import schemas
from storage.codec import encode

VOCABULARY = 151_936
SHAPES = {"short": (1, 4, 128, 128), "long": (1, 8, 512, 128)}
"""Prompts, samples of each, tokens of a prompt and of a response."""
ROLLOUTS = (16, 128)
"""Whose memory is compared; the fewer fill a batch and the buffers of the head."""
MOST_KB = 2.0
"""Of a token in memory: its row, as scored and as a table. Its logits would take 300."""
SETTINGS = Score(teacher_top_k=32, student_top_k=16)
Rollouts = list[tuple[list[int], list[int]]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scorer", description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        return peak_memory(arguments.memory)
    models = [random_model(arguments.layers, seed) for seed in (1, 2)]
    result = {"threads": arguments.threads, "layers": arguments.layers, "response_tokens_per_s": {}}
    with vllm_over(models[1], arguments.threads) as vllm:
        for shape in SHAPES:
            rates = compare(random_rollouts(*SHAPES[shape]), models, vllm, arguments.repeats)
            result["response_tokens_per_s"][shape] = rates
            print(shape, *(f"{name} {value:.0f}" for name, value in rates.items()), sep="   ", flush=True)
    result["parts"] = {name: parts(random_rollouts(*SHAPES["short"]), each, arguments.repeats)
                       for name, each in (("teacher", (None, models[1])), ("both", models))}
    result["host"] = host_cost(arguments.repeats)
    result["peak_memory_mb"] = {str(count): measured_memory(count, arguments.threads) for count in ROLLOUTS}
    for section in ("parts", "host", "peak_memory_mb"):
        print(section, result[section])
    return finish("scorer", result, targets(result), arguments.output)


def targets(result: dict) -> list[Target]:
    short, long = result["response_tokens_per_s"]["short"], result["response_tokens_per_s"]["long"]
    memory = result["peak_memory_mb"]
    return [
        *(Target(f"times vLLM's prompt_logprobs, {form}, {shape}",
                 rates["ours_teacher"] / rates[f"vllm_{form}"] if f"vllm_{form}" in rates else None, 4.0)
          for shape, rates in (("4 x (128 + 128)", short), ("8 x (512 + 128)", long)) for form in ("dict", "flat")),
        Target("times the full-logits loop, 4 x (128 + 128)", short["ours_teacher"] / short["loop"], 2.0),
        Target("times the full-logits loop, 8 x (512 + 128)", long["ours_teacher"] / long["loop"], 2.0),
        Target("all but trunk and head, share of them, teacher's columns", result["parts"]["teacher"]["rest_share"],
               0.25, at_most=True),
        Target("all but trunk and head, share of them, both sides", result["parts"]["both"]["rest_share"], 0.25,
               at_most=True),
        Target("host's cost per token, us", result["host"]["us_per_token"], 5.0, at_most=True),
        Target("memory per further response token, KB (its row of the table .5)", kb_per_token(memory), MOST_KB,
               at_most=True),
    ]


def kb_per_token(peak_memory_mb: dict[str, float]) -> float:
    """What the peak grows by for each further response token."""
    fewer, more = (peak_memory_mb[str(count)] for count in ROLLOUTS)
    return 1024 * (more - fewer) / ((ROLLOUTS[1] - ROLLOUTS[0]) * 64)


def compare(table: pa.Table, models: list, vllm: VllmProcess | None, repeats: int) -> dict[str, float]:
    """Response tokens per second by method: medians, every method once per repeat, after one repeat that warms up."""
    pairs = list(zip(table["prompt_tokens"].to_pylist(), table["response_tokens"].to_pylist()))
    methods = {
        "ours_teacher": lambda: score_teacher(table, models[1], VOCABULARY, SETTINGS),
        "ours_both": lambda: score_rollouts(table, *models, VOCABULARY, SETTINGS),
        "loop": lambda: full_logits(pairs, models[1], SETTINGS.teacher_top_k),
        "chunked": lambda: chunked_head(pairs, models[1], SETTINGS.teacher_top_k),
    }
    seconds: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        for name, method in methods.items():
            note(seconds, name, timed(method))
        for flat in (False, True) if vllm else ():
            answer = vllm.ask(pairs, flat)
            note(seconds, "vllm_flat" if flat else "vllm_dict", answer["seconds"] + answer["reading_s"])
    check(table, models[1], pairs, answer["log_probs"] if vllm else None)
    tokens = sum(len(response) for _, response in pairs)
    return {name: tokens / statistics.median(values[1:]) for name, values in seconds.items()}


def check(table: pa.Table, teacher, pairs: Rollouts, theirs: list | None) -> None:
    """All methods say the same of the sampled tokens, up to the rounding of bfloat16."""
    ours = score_teacher(table, teacher, VOCABULARY, SETTINGS)["teacher_log_prob"]
    for name, other in (("loop", full_logits(pairs, teacher, 32)), ("chunked", chunked_head(pairs, teacher, 32)),
                        ("vLLM", theirs)):
        if other is not None:
            difference = float(np.abs(ours - np.concatenate(other)).mean())
            assert difference < 0.05, f"{name} differs by {difference:.3f} nats on average"


def parts(table: pa.Table, models: tuple, repeats: int) -> dict[str, float]:
    """Microseconds per response token of one pass by part, from the run of median length."""
    runs = []
    for _ in range(repeats + 1):
        spent: dict[str, float] = {}
        with stopwatch(Side, "hidden", spent), stopwatch(Side, "project", spent), stopwatch(Scorer, "_block", spent):
            student, teacher = models
            total = timed(lambda: score_rollouts(table, student, teacher, VOCABULARY, SETTINGS) if student
                          else score_teacher(table, teacher, VOCABULARY, SETTINGS))
        runs.append((total, spent))
    total, spent = sorted(runs[1:], key=lambda run: run[0])[len(runs[1:]) // 2]
    per_token = 1e6 / sum(map(len, table["response_tokens"].to_pylist()))
    models_s = spent["hidden"] + spent["project"]
    return {"trunk_us": spent["hidden"] * per_token, "head_us": spent["project"] * per_token,
            "statistics_us": spent["_block"] * per_token,
            "other_us": (total - models_s - spent["_block"]) * per_token, "rest_share": (total - models_s) / models_s}


def host_cost(repeats: int) -> dict[str, float]:
    """Everything but the models' and the statistics' computation, per token, gates and Parquet included, as the time
    of one processor, which others on the machine do not lengthen."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait count as well
    models = [random_model(1, seed, hidden=64, vocabulary=2048) for seed in (1, 2)]
    table, runs, clock = random_rollouts(8, 8, 128, 128, vocabulary=2048), [], time.process_time
    for _ in range(repeats + 1):
        spent: dict[str, float] = {}
        with ExitStack() as watches:
            for owner, name in ((Side, "hidden"), (Side, "project"), (Scorer, "_block")):
                watches.enter_context(stopwatch(owner, name, spent, clock))
            start = clock()
            scores = score_rollouts(table, *models, 2048, SETTINGS)
            scoring = clock() - start - sum(spent.values())
        place = scores.schema.get_field_index("rollout_log_prob")  # as if the student had written these rollouts
        own = scores.set_column(place, scores.schema.field(place), scores["student_log_prob"])
        gates = timed(lambda: check_scores(own, table, 2048), clock)
        runs.append((scoring, gates, timed(lambda: encode(scores), clock)))
    torch.set_num_threads(threads)
    scoring, gates, encoding = (statistics.median(values) * 1e6 / scores.num_rows for values in zip(*runs[1:]))
    return {"tokens": scores.num_rows, "scoring_us": scoring, "gates_us": gates, "encoding_us": encoding,
            "us_per_token": scoring + gates + encoding}


def measured_memory(count: int, threads: int) -> float:
    """`peak_memory` of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.scorer", "--memory", str(count), "--threads", str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak_memory(count: int) -> int:
    """Print the peak of this process, in MB, after scoring `count` rollouts of 64 + 64 tokens."""
    models = [random_model(1, seed, hidden=64) for seed in (1, 2)]
    settings = SETTINGS.model_copy(update={"batch_tokens": ROLLOUTS[0] * 64, "head_rows": ROLLOUTS[0] * 32})
    score_rollouts(random_rollouts(count // 8, 8, 64, 64), *models, VOCABULARY, settings)
    status = Path("/proc/self/status").read_text()  # getrusage would count the process that started this one
    print(int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024)
    return 0


@contextmanager
def vllm_over(model, threads: int):
    """vLLM with a model's weights, None where it is not installed."""
    with tempfile.TemporaryDirectory(prefix="opd-bench-") as folder:
        model.save_pretrained(folder)
        try:
            process = VllmProcess(Path(folder), SETTINGS.teacher_top_k, 1024, threads)
        except ModuleNotFoundError:
            print("vLLM is not installed: its comparison is skipped")
            yield None
            return
        with process as ready:
            yield ready


@contextmanager
def stopwatch(owner: type, name: str, spent: dict[str, float], clock=time.perf_counter):
    """Add up the time that a method takes."""
    method = getattr(owner, name)

    def measured(*arguments):
        start = clock()
        result = method(*arguments)
        spent[name] = spent.get(name, 0.0) + clock() - start
        return result

    setattr(owner, name, measured)
    yield
    setattr(owner, name, method)


def timed(call, clock=time.perf_counter) -> float:
    start = clock()
    call()
    return clock() - start


def note(seconds: dict[str, list[float]], name: str, value: float) -> None:
    seconds.setdefault(name, []).append(value)


def random_model(layers: int, seed: int, hidden: int = 896, vocabulary: int = VOCABULARY) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(
        hidden_size=hidden, intermediate_size=hidden * 19 // 7 * 2, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=min(2, hidden // 64), vocab_size=vocabulary,
        tie_word_embeddings=True)).eval().to(torch.bfloat16)


def random_rollouts(prompts: int, samples: int, prompt: int, response: int, vocabulary: int = VOCABULARY) -> pa.Table:
    random = np.random.default_rng(0)
    numbers, asked = [0.0] * response, [random.integers(0, vocabulary, prompt).tolist() for _ in range(prompts)]
    return pa.Table.from_pylist([{
        "rollout_id": index, "prompt_id": index // samples, "sample": index % samples, "task": "t", "data_source": "d",
        "messages": "[]", "prompt_tokens": asked[index // samples], "response_text": "",
        "response_tokens": random.integers(0, vocabulary, response).tolist(), "finish_reason": "length",
        "turns": [{"start": 0, "end": response}], "policy_version": "p", "engine": "e", "sampling": {}, "seed": 0,
        "token_hash": "h", "rollout_log_probs": numbers, "sampling_log_probs": numbers,
    } for index in range(prompts * samples)], schema=schemas.ROLLOUTS)


if __name__ == "__main__":
    sys.exit(main())
