"""The support head against dense heads, on one CPU thread, both sides in one run:

    python -m benchmarks.support_head            (a quarter of an hour, 13 GB of memory)

All sides get hidden states H [N, D], the head's weight W [V, D] in float32 and K ids per position, compute
teacher_topk_lsm with the product's objective, and go backward to dH and dW.
  dense    logits of all V (F.linear), gather the K, autograd: dlogits [N, V], dH and a fresh dW. No softmax over V,
           which LSM does not need, and no zeroing or adding up of dW, so this is the dense head at its cheapest.
  chunked  the same, 256 positions at a time, dW added to one that is there: one chunk is timed, times their number
  support  pipeline/train/support/head.py, dW added into a weight.grad that is there

What a step costs the support head besides is measured on its own and counted both ways, because dW is a buffer that
somebody must clear: building the index (the trainer's loader does it ahead), clearing only the touched rows of
weight.grad, zeroing all of it. The targets hold for the costliest sum, index + forward + backward + zeroing all V, and
the cheaper of dense and chunked. The logged logsumexp is the chunked one, without gradient, on 1/32 of the positions.

Ids: K distinct per position, drawn by Zipf's law with exponent 1 over a random permutation of the vocabulary, or
uniformly. `growth`: the support head alone at other K, V and numbers of positions. `whole step`: a Qwen2-shaped trunk
with a tied head of 6 and of 24 layers, forward, backward and AdamW. Medians, after a call that is not timed. Ends with
a line per target, writes benchmarks/results/support_head.json, exits 1 if one is missed.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.report import Target, finish
from pipeline.config.model import TeacherTopKLsm
from pipeline.objectives import StudentLogits, TokenBatch, build
from pipeline.train.in_place import embed
from pipeline.train.log_normaliser import log_normaliser
from pipeline.train.optimizer import adamw
from pipeline.train.support.head import student_logits
from pipeline.train.support.index import SupportIndex

VOCABULARY = 151_936
LOGGED = 32
"""One of so many positions has its logsumexp logged."""
CHUNK = 256
"""Positions of the chunked dense head."""
COUNTED = "+ index + zeroing all of dW"
"""The sum that the targets hold for."""
GROWTH = {"k": (16, 32, 64, 128), "vocabulary": (32_768, 65_536, VOCABULARY), "positions": (256, 1024, 4096)}
LSM = build(TeacherTopKLsm())


def median_ms(run, repeats):
    """Median, least and most of `repeats` timed calls after one that is not timed where there are several."""
    if repeats > 1:
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return {"median": statistics.median(times), "least": min(times), "most": max(times), "repeats": repeats}


def draw_ids(kind, positions, k, vocabulary=VOCABULARY):
    """Distinct in each row: the k first arrivals of exponential clocks whose rates follow the law."""
    rank = torch.arange(1, vocabulary + 1, dtype=torch.float32)
    rate = 1 / rank if kind == "zipf" else torch.ones_like(rank)
    clocks = (torch.empty(min(64, positions - start), vocabulary).exponential_() / rate
              for start in range(0, positions, 64))
    chosen = [clock.topk(k, largest=False).indices for clock in clocks]
    return torch.randperm(vocabulary)[torch.cat(chosen)]


def teacher_batch(ids):
    """A batch whose teacher holds .9 on the ids; the columns LSM does not read are empty."""
    positions, k = ids.shape
    log_q = (2 * torch.randn(positions, k)).sort(1, descending=True).values.log_softmax(1) + torch.tensor(0.9).log()
    tail, one = torch.full((positions,), 0.1).log(), torch.ones(positions)
    unread = dict.fromkeys(("teacher_log_prob_N", "student_log_prob_N", "sampling_log_prob_N", "student_log_tail_N",
                            "student_topk_log_probs_Nk", "teacher_at_student_Nk"), torch.empty(positions, 0))
    ints = torch.zeros(positions, dtype=torch.long)
    return TokenBatch(token_ids_N=ints, rollout_N=ints, position_N=torch.arange(positions),
                      student_topk_ids_Nk=ints[:, None], teacher_topk_ids_NK=ids, teacher_topk_log_probs_NK=log_q,
                      teacher_log_tail_N=tail, weight_N=one, **unread)


def backward(batch, student):
    ((LSM.factors(batch) * LSM.loss(batch, student)).sum() / LSM.units(batch)).backward()


def dense_head(hidden, weight, batch):
    hidden.grad = weight.grad = None
    backward(batch, StudentLogits(F.linear(hidden, weight).gather(1, LSM.support(batch))))


def dense_chunk(hidden, weight, batch):
    """One of the chunks, its dW added to that of the others."""
    hidden.grad = None
    part = batch.select(torch.arange(CHUNK))
    backward(part, StudentLogits(F.linear(hidden[:CHUNK], weight).gather(1, LSM.support(part))))


def support_head(hidden, weight, batch, index):
    hidden.grad = None
    backward(batch, student_logits(hidden, weight, index, log_normaliser=LSM.needs_log_normaliser))


def largest_error(found, expected):
    """Largest difference relative to the largest entry; row blocks, so that no third [V, D] is needed."""
    difference = max((a - b).abs().max().item() for a, b in zip(found.split(4096), expected.split(4096)))
    return difference / expected.abs().max().item()


def compare(name, *, width, k, kind, positions, repeats, dense_repeats):
    """Time both heads on one problem."""
    torch.manual_seed(0)
    weight = (torch.randn(VOCABULARY, width) / width**0.5).requires_grad_()
    hidden = torch.randn(positions, width).requires_grad_()
    batch = teacher_batch(draw_ids(kind, positions, k))
    index, buffer = SupportIndex.build(LSM.support(batch)), torch.zeros_like(weight)
    weight.grad = buffer
    ms = {
        "support": median_ms(lambda: support_head(hidden, weight, batch, index), repeats),
        "index": median_ms(lambda: SupportIndex.build(LSM.support(batch)), repeats),
        "clear rows": median_ms(lambda: buffer.index_fill_(0, index.ids_U, 0.0), repeats),
        "zero all": median_ms(buffer.zero_, repeats),
        "logged logsumexp": median_ms(lambda: logged_logsumexp(hidden, weight), repeats),
    }
    buffer.zero_()
    support_head(hidden, weight, batch, index)
    hidden_grad = hidden.grad
    ms["dense"] = median_ms(lambda: dense_head(hidden, weight, batch), dense_repeats)
    errors = {"dH": largest_error(hidden_grad, hidden.grad), "dW": largest_error(buffer, weight.grad)}
    chunk = median_ms(lambda: dense_chunk(hidden, weight, batch), dense_repeats)
    ms["chunked dense"] = {name: value if name == "repeats" else value * positions / CHUNK
                           for name, value in chunk.items()}
    return {"name": name, "width": width, "vocabulary": VOCABULARY, "k": k, "ids": kind, "positions": positions,
            "distinct_ids": len(index.ids_U), "ms": ms, "gradient_error": errors, "ratios": ratios(ms)}


@torch.no_grad()
def logged_logsumexp(hidden, weight):
    return log_normaliser(hidden[::LOGGED], weight)


def ratios(ms):
    """The cheaper dense side over ours, by what is counted on our side."""
    cost = {name: value["median"] for name, value in ms.items()}
    sums = {"forward + backward": ["support"],
            "+ index + clearing touched rows": ["support", "index", "clear rows"],
            "+ index + zeroing all of dW": ["support", "index", "zero all"]}
    dense = min(cost["dense"], cost["chunked dense"])
    found = {name: dense / sum(cost[part] for part in parts) for name, parts in sums.items()}
    found |= {f"{name}, with logged logsumexp": dense / sum(cost[part] for part in [*parts, "logged logsumexp"])
              for name, parts in sums.items()}
    return found


def growth(*, width=896, k=64, positions=1024, repeats=3):
    """Milliseconds per position of forward and backward, one size changed at a time."""
    found = {}
    for name, sizes in GROWTH.items():
        for size in sizes:
            shape = {"k": k, "positions": positions, "vocabulary": VOCABULARY, name: size}
            torch.manual_seed(0)
            weight = (torch.randn(shape["vocabulary"], width) / width**0.5).requires_grad_()
            hidden = torch.randn(shape["positions"], width).requires_grad_()
            batch = teacher_batch(draw_ids("zipf", shape["positions"], shape["k"], shape["vocabulary"]))
            index, weight.grad = SupportIndex.build(LSM.support(batch)), torch.zeros_like(weight)
            ms = median_ms(lambda: support_head(hidden, weight, batch, index), repeats)["median"]
            found[f"{name} {size}"] = ms / shape["positions"]
    return found


def whole_step(layers, *, positions=1024, width=896, k=64, repeats=3):
    """Steps of training with either head in turn: trunk forward and backward, head, AdamW. Every turn has two steps, of
    which the first makes the gradients' memory (and AdamW's state, once) and is not counted."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    shape = Qwen2Config(vocab_size=VOCABULARY, hidden_size=width, intermediate_size=4864, num_hidden_layers=layers,
                        num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True)
    model = Qwen2ForCausalLM(shape)
    weight, tokens = model.lm_head.weight, torch.randint(VOCABULARY, (2, positions // 2))
    batch = teacher_batch(draw_ids("zipf", positions, k))
    optimizer = adamw(model, learning_rate=1e-6, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    times = defaultdict(list)

    def timed(name, run):
        start = time.perf_counter()
        result = run()
        times[name].append(1000 * (time.perf_counter() - start))
        return result

    def step(name, embedding, head):
        hidden = timed(f"{name} trunk forward", lambda: model.model(inputs_embeds=embedding()).last_hidden_state)
        states = hidden.flatten(0, 1).detach().requires_grad_()
        timed(f"{name} head", lambda: head(states))
        timed(f"{name} trunk backward", lambda: hidden.backward(states.grad.view_as(hidden)))
        timed(f"{name} AdamW", optimizer.step)
        timed(f"{name} zeroing", lambda: clear(keep=name == "support"))

    def clear(keep):
        """As the trainer clears them: the tied matrix keeps the memory of its gradient, if it is to."""
        buffer = weight.grad
        optimizer.zero_grad(set_to_none=True)
        if keep:
            weight.grad = buffer.zero_()

    def ours(states):
        support_head(states, weight, batch, SupportIndex.build(LSM.support(batch)))
        logged_logsumexp(states.detach(), weight)

    def dense(states):
        backward(batch, StudentLogits(F.linear(states, weight).gather(1, LSM.support(batch))))

    for _ in range(repeats):
        for _ in range(2):
            step("support", lambda: embed(tokens, weight), ours)
        for _ in range(2):
            step("dense", lambda: F.embedding(tokens, weight), dense)
    counted = {name: values[1::2] for name, values in times.items()}
    ms = {name: statistics.median(values) for name, values in counted.items()}
    total = {side: statistics.median(map(sum, zip(*(counted[name] for name in counted if name.startswith(side)))))
             for side in ("dense", "support")}
    return {"layers": layers, "positions": positions, "k": k, "repeats": repeats, "ms": ms,
            "step_ms": total, "ratio": total["dense"] / total["support"]}


def memory_gb(kind):
    """Peak of a process on 8192 positions above W, W.grad and H, in a process of its own."""
    run = subprocess.run([sys.executable, "-m", "benchmarks.support_head", "--memory", kind], check=True,
                         capture_output=True, text=True)
    return float(run.stdout)


def measure_memory(kind, positions=8192, width=896, k=64):
    weight = torch.randn(VOCABULARY, width).requires_grad_()
    weight.grad = torch.ones_like(weight)
    hidden = torch.randn(positions, width).requires_grad_()
    batch = teacher_batch(draw_ids(kind, positions, k))
    some = batch.select(torch.arange(8))
    support_head(hidden[:8].detach().requires_grad_(), weight, some, SupportIndex.build(LSM.support(some)))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
    before = status_gb("VmRSS")
    support_head(hidden, weight, batch, SupportIndex.build(LSM.support(batch)))
    return status_gb("VmHWM") - before


def status_gb(field):
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9


def targets(cases, memory):
    """Of the issue and of performance.md."""
    by_name = {case["name"]: case["ratios"] for case in cases}
    errors = [error for case in cases for error in case["gradient_error"].values()]
    logged = f"{COUNTED}, with logged logsumexp"
    return [Target("best dense / ours, Zipf ids, d 896, K 64", by_name["zipf"][COUNTED], 80.0),
            Target("the same with the logged logsumexp", by_name["zipf"][logged], 25.0),
            Target("best dense / ours, Zipf ids, d 3584, K 32", by_name["wide"][COUNTED], 150.0),
            Target("gradient error relative to the largest, float32", max(errors), 1e-5, at_most=True),
            Target("extra memory for 8192 positions, dH included, GB", max(memory.values()), 0.15, at_most=True)]


def show(case):
    print(f"\n{case['name']}: D {case['width']}, V {case['vocabulary']}, K {case['k']}, {case['ids']} ids "
          f"({case['distinct_ids']} distinct), {case['positions']} positions")
    for name, value in case["ms"].items():
        print(f"  {name:<18} {value['median']:>10.1f} ms   ({value['least']:.1f} to {value['most']:.1f}, "
              f"{value['repeats']} repeats, {value['median'] / case['positions']:.4f} ms per position)")
    for name, value in case["ratios"].items():
        print(f"  dense / ours, {name:<62} {value:>7.1f}")
    errors = ", ".join(f"{name} {error:.1e}" for name, error in case["gradient_error"].items())
    print(f"  gradient error relative to the largest: {errors}")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--memory", choices=["zipf", "uniform"], help="only this process's extra memory, in GB")
    torch.set_num_threads(1)
    kind = arguments.parse_args().memory
    if kind:
        print(measure_memory(kind))
        return 0
    memory = {kind: memory_gb(kind) for kind in ("zipf", "uniform")}
    print("extra memory for 8192 positions, K 64, D 896, dH included: "
          + ", ".join(f"{kind} ids {value:.3f} GB" for kind, value in memory.items()))
    cases = []
    for case in ({"name": "zipf", "width": 896, "k": 64, "kind": "zipf", "dense_repeats": 3},
                 {"name": "uniform", "width": 896, "k": 64, "kind": "uniform", "dense_repeats": 2},
                 {"name": "wide", "width": 3584, "k": 32, "kind": "zipf", "dense_repeats": 3},):
        cases.append(compare(**case, positions=1024, repeats=7))
        show(cases[-1])
    grown = growth()
    print("\ngrowth, ms per position: " + ", ".join(f"{name} {value:.4f}" for name, value in grown.items()))
    steps = []
    for layers in (6, 24):
        steps.append(whole_step(layers))
        print(f"\nwhole step, {layers} layers: "
              + ", ".join(f"{name} {value:.0f}" for name, value in steps[-1]["ms"].items()) + " (ms)")
        print(f"  dense / ours: {steps[-1]['ratio']:.2f}", flush=True)
    result = {"threads": torch.get_num_threads(), "dtype": "float32", "memory_gb": memory, "cases": cases,
              "growth_ms_per_position": grown, "whole_steps": steps}
    return finish("support_head", result, targets(cases, memory))


if __name__ == "__main__":
    sys.exit(main())
