"""The support head on the device against dense heads: time and extra memory, the rates behind the rule, tiles.

8192 positions, K ids each by Zipf's law, teacher_topk_lsm, forward and backward to dH and dW, hidden states and weight
in bfloat16 (also hidden in bfloat16 over a float32 weight, as a trainer with master weights has it).
  dense      logits of all V, gather the K, autograd: a fresh dW
  chunked    the same, 1024 positions at a time, dW added up: no [8192, V]
  ours       each path, dW added to a .grad that is zeroed in the measured time; the index comes from the loader
Autograd's dense sides run under autocast where the weight is float32.
"""

import contextlib

import torch
import torch.nn.functional as F

from benchmarks.gpu_checks import clear, paths_here
from benchmarks.gpu_tools import Bench, Figure, zipf_ids
from pipeline.train.log_normaliser import log_normaliser
from pipeline.train.support import paths
from pipeline.train.support.head import support_logits
from pipeline.train.support.index import CHUNK, SupportIndex
from pipeline.train.support.paths import Problem, seconds

WIDTHS, SUPPORTS = (896, 1536, 3584), (64, 32)
TARGET_SHAPE = (3584, 64)
OURS = ("gemm", "fused", "hybrid")
BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


def cases(bench: Bench) -> list:
    shapes = [(width, support) for width in reversed(WIDTHS) for support in SUPPORTS]
    if bench.tiny:
        shapes = [(24, 4)]
    found = [(f"support head d {width}, K {support}", lambda shape=(width, support): compare(bench, *shape, BFLOAT16))
             for width, support in shapes]
    found.insert(2, ("support head, float32 weight", lambda: compare(bench, *shapes[0], FLOAT32)))
    found.insert(3, ("support head, float32 weight, TF32",
                     lambda: with_tf32(lambda: compare(bench, *shapes[0], FLOAT32))))
    found.insert(4, ("rates", lambda: rates(bench)))
    found.append(("normaliser", lambda: normaliser(bench, shapes[0][0])))
    if bench.gpu and paths.triton_runs():
        found.append(("tiles", lambda: tiles(bench)))
    return found


def with_tf32(run):
    """As the trainer multiplies float32 weights beside bfloat16 hidden states."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return run()
    finally:
        torch.set_float32_matmul_precision(before)


def problem(bench: Bench, width: int, support: int, weight_dtype: torch.dtype):
    positions, vocabulary = (8, 300) if bench.tiny else (8192, 151_936)
    torch.manual_seed(0)
    hidden = torch.randn(positions, width, device=bench.device, dtype=BFLOAT16 if bench.gpu else FLOAT32)
    weight = torch.randn(vocabulary, width, device=bench.device, dtype=weight_dtype if bench.gpu else FLOAT32)
    ids = zipf_ids(positions, support, vocabulary, bench.device)
    log_q = torch.randn(ids.shape, device=bench.device).log_softmax(1)
    return hidden.requires_grad_(), weight.mul_(width**-0.5).requires_grad_(), ids, log_q


def lsm(logits_NS, log_q_NS):
    """Reverse KL of the two distributions renormalised on the support, summed and divided by 8192."""
    log_p_NS = logits_NS.float().log_softmax(1)
    return (log_p_NS.exp() * (log_p_NS - log_q_NS)).sum() / 8192


def compare(bench: Bench, width: int, support: int, weight_dtype: torch.dtype) -> list[Figure]:
    hidden, weight, ids, log_q = problem(bench, width, support, weight_dtype)
    index = SupportIndex.build(ids.cpu(), CHUNK).to(bench.device)
    where = f"d {width}, K {support}" + (", float32 weight" if weight_dtype == FLOAT32 else "")
    where += ", TF32" if torch.get_float32_matmul_precision() == "high" else ""
    autocast = torch.autocast("cuda", BFLOAT16) if hidden.dtype != weight.dtype else contextlib.nullcontext()

    def dense(chunk):
        clear(hidden, weight)
        for rows in range(0, len(hidden), chunk):
            part = slice(rows, rows + chunk)
            with autocast:
                logits = F.linear(hidden[part], weight).gather(1, ids[part])
            lsm(logits, log_q[part]).backward()

    def ours(path):
        hidden.grad = None
        weight.grad.zero_()
        lsm(support_logits(hidden, weight, index, path=path), log_q).backward()

    sides = {"dense": lambda: dense(len(hidden)), "chunked dense": lambda: dense(1024), **liger(hidden, weight)}
    ms, gb = {}, {}
    for name, run in sides.items():
        ms[name] = bench.ms(run, 3)
        clear(hidden, weight)
        gb[name] = bench.extra_gb(run)
    for name, path in paths_here(bench).items():
        weight.grad = torch.zeros_like(weight)
        ms[name] = bench.ms(lambda path=path: ours(path))
        hidden.grad = None
        gb[name] = bench.extra_gb(lambda path=path: ours(path))
    clear(hidden, weight)
    bench.free()
    bench.notes[f"support head {where}"] = {"ms": ms, "extra_gb": gb, "distinct_ids": len(index.ids_U), "estimate_ms": {
        name: 1000 * value for name, value in seconds(Problem.of(hidden, weight, index)).items()}}
    return figures(where, ms, gb, Problem.of(hidden, weight, index),
                   targeted=(width, support) == TARGET_SHAPE and weight_dtype == BFLOAT16)


def figures(where: str, ms: dict, gb: dict, problem: Problem, targeted: bool) -> list[Figure]:
    """Times, ratios to the best dense side, and whether the rule takes the faster path."""
    estimate = seconds(problem)
    mine = {name: value for name, value in ms.items() if name in OURS}
    best_dense = min(value for name, value in ms.items() if name not in OURS)
    chosen = min(mine, key=lambda name: estimate.get(name, float("inf")))
    found = [Figure(f"{where}: {name}", value, "ms") for name, value in ms.items()]
    found += [Figure(f"{where}: {name}, extra memory", value, "GB") for name, value in gb.items()]
    found += [Figure(f"{where}: best dense / the path that the rule takes ({chosen})", best_dense / mine[chosen],
                     "times", 10.0 if targeted else None),
              Figure(f"{where}: extra memory of that path, dH included", gb[chosen], "GB", 0.15 if targeted else None,
                     True),
              Figure(f"{where}: the path that the rule takes / the faster one", mine[chosen] / min(mine.values()),
                     "times")]
    return found


def liger(hidden, weight) -> dict:
    """Liger's fused linear JSD, if it is installed: student and teacher over the whole vocabulary."""
    try:
        from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD
    except ImportError:
        return {}
    loss = LigerFusedLinearJSD()

    def run():
        clear(hidden, weight)
        loss(hidden, weight, hidden.detach(), weight.detach()).backward()

    return {"Liger's fused linear JSD": run}


def rates(bench: Bench) -> list[Figure]:
    """What paths.RATES has to hold for this device: measured on a copy, products and the fused kernels."""
    size, rows = (64, 1000) if bench.tiny else (8192, 2**20)
    found = {}
    for dtype in (BFLOAT16, FLOAT32) if bench.gpu else (FLOAT32,):
        a = torch.randn(size, size, device=bench.device, dtype=dtype)
        found[f"products of {str(dtype).removeprefix('torch.')}"] = 2 * size**3 / bench.ms(lambda: a @ a) * 1000
    a = torch.randn(size, size, device=bench.device)
    found["products of tf32"] = 2 * size**3 / with_tf32(lambda: bench.ms(lambda: a @ a)) * 1000
    table = torch.randn(rows, 256, device=bench.device)
    found["streamed bytes"] = 2 * table.nbytes / bench.ms(table.clone) * 1000
    if "fused" in paths_here(bench):
        width, support = (24, 4) if bench.tiny else TARGET_SHAPE
        hidden, weight, ids, _ = problem(bench, width, support, BFLOAT16)
        index, fused = SupportIndex.build(ids), paths_here(bench)["fused"]
        with torch.no_grad():
            time_ms = bench.ms(lambda: fused.dots(hidden, weight, index))
        found["gathered bytes"] = ids.numel() * width * weight.element_size() / time_ms * 1000
    bench.notes["rates"] = found
    return [Figure(f"rate: {name}", value / 1e12, "T/s") for name, value in found.items()]


def normaliser(bench: Bench, width: int) -> list[Figure]:
    """The logsumexp over all ids, with its gradient at every position and without at one of 32."""
    hidden, weight, _, _ = problem(bench, width, 4, BFLOAT16)
    weight.grad = torch.zeros_like(weight)

    def trained():
        hidden.grad = None
        log_normaliser(hidden, weight).sum().backward()

    logged = hidden[::32].detach()
    with torch.no_grad():
        logged_ms = bench.ms(lambda: log_normaliser(logged, weight))
    trained_ms = bench.ms(trained, 2)
    hidden.grad = None
    gb = bench.extra_gb(trained)
    clear(hidden, weight)
    return [Figure(f"normaliser d {width}: one of 32 positions, no gradient", logged_ms, "ms"),
            Figure(f"normaliser d {width}: all positions, forward and backward", trained_ms, "ms"),
            Figure(f"normaliser d {width}: extra memory, dH included", gb, "GB", 0.15, True)]


def tiles(bench: Bench) -> list[Figure]:
    """Each kernel at the target shape with its tile and the neighbours of that."""
    fused = paths.paths()["fused"]
    hidden, weight, ids, grad = problem(bench, *TARGET_SHAPE, BFLOAT16)
    index, buffer = SupportIndex.build(ids), torch.zeros_like(weight)
    kernels = {
        "dots": (fused.DOTS, lambda tile: fused.dots(hidden, weight, index, tile)),
        "hidden_gradient": (fused.BAGS, lambda tile: fused.hidden_gradient(hidden, weight, grad, index, tile)),
        "weight gradient, rare": (fused.RARE_IDS, lambda tile: fused.add_weight_gradient(
            buffer, hidden, grad, index, (tile, fused.FREQUENT_IDS))),
        "weight gradient, frequent": (fused.FREQUENT_IDS, lambda tile: fused.add_weight_gradient(
            buffer, hidden, grad, index, (fused.RARE_IDS, tile)))}
    found, notes = [], {}
    with torch.no_grad():
        for name, (now, run) in kernels.items():
            near = {now, *(fused.Tile(max(2, int(now.rows * rows)), max(32, int(now.columns * columns)), warps)
                           for rows, columns, warps in ((0.5, 1, 4), (2, 1, 4), (1, 0.5, 4), (1, 2, 4), (1, 1, 8),
                                                        (1, 1, 2)))}
            times = {tile: bench.ms(lambda tile=tile: run(tile), 3) for tile in near}
            best = min(times, key=times.get)
            notes[name] = {str(tile): value for tile, value in times.items()}
            found += [Figure(f"kernel {name}: {now.rows} x {now.columns}, {now.warps} warps", times[now], "ms"),
                      Figure(f"kernel {name}: best of its neighbours, {best.rows} x {best.columns}, {best.warps} warps",
                             times[best], "ms")]
    bench.notes["tiles"] = notes
    return found
