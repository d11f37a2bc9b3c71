"""The support head on the device against dense heads: time and extra memory, the rates behind the rule, tiles.

8192 positions, K ids each by Zipf's law, teacher_topk_lsm, forward and backward to dH and dW, hidden states and weight
in bfloat16 (also both in float32, multiplied as TF32, as a trainer with master weights has them: its residual stream is
float32 under autocast).
  dense      logits of all V, gather the K, autograd: a fresh dW
  chunked    the same, 1024 positions at a time, dW added up: no [8192, V]
  ours       each path, dW added to a .grad that is zeroed in the measured time; the index, of the ids, is made once and
             timed apart
Autograd's dense sides run under autocast where the weight is float32.
"""

import contextlib
import gc

import torch
import torch.nn.functional as F

from benchmarks.gpu_checks import clear, paths_here
from benchmarks.gpu_figures import Figure
from benchmarks.gpu_tools import Bench, as_peers_run, zipf_ids
from pipeline.train.log_normaliser import log_normaliser
from pipeline.train.support import paths
from pipeline.train.support.head import support_logits
from pipeline.train.support.index import CHUNK, SupportIndex
from pipeline.train.support.paths import Problem, rates_of, seconds
from pipeline.train.support.products import product

WIDTHS, SUPPORTS = (896, 1536, 3584), (64, 32)
TARGET_SHAPE = (3584, 64)
RULE_LOSES = 1.25
"""By how much the path that the rule takes may be slower than another: its rates are rounded, and measured once."""
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
    found.insert(0, ("rates", lambda: rates(bench)))
    found.insert(2, ("the index", lambda: indexing(bench)))
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
    dtype = weight_dtype if bench.gpu else FLOAT32
    hidden = torch.randn(positions, width, device=bench.device, dtype=dtype)
    weight = torch.randn(vocabulary, width, device=bench.device, dtype=dtype)
    ids = zipf_ids(positions, support, vocabulary, bench.device)
    log_q = torch.randn(ids.shape, device=bench.device).log_softmax(1)
    return hidden.requires_grad_(), weight.mul_(width**-0.5).requires_grad_(), ids, log_q


def lsm(logits_NS, log_q_NS):
    """Reverse KL of the two distributions renormalised on the support, summed and divided by 8192."""
    log_p_NS = logits_NS.float().log_softmax(1)
    return (log_p_NS.exp() * (log_p_NS - log_q_NS)).sum() / 8192


def compare(bench: Bench, width: int, support: int, weight_dtype: torch.dtype) -> list[Figure]:
    hidden, weight, ids, log_q = problem(bench, width, support, weight_dtype)
    index = SupportIndex.build(ids, CHUNK)
    where = f"d {width}, K {support}" + (", float32 weight" if weight_dtype == FLOAT32 else "")
    where += ", TF32" if torch.get_float32_matmul_precision() == "high" else ""
    float32 = bench.gpu and weight.dtype == FLOAT32
    autocast = torch.autocast("cuda", BFLOAT16) if float32 else contextlib.nullcontext()

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
        with as_peers_run():
            ms[name] = bench.ms(run, 3)
            clear(hidden, weight)
            gb[name] = bench.extra_gb(run)
    for name, path in paths_here(bench).items():
        gc.collect()
        weight.grad = torch.zeros_like(weight)
        ms[name] = bench.ms(lambda path=path: ours(path))
        hidden.grad = None
        gb[name] = bench.extra_gb(lambda path=path: ours(path))
    clear(hidden, weight)
    bench.free()
    bench.notes[f"support head {where}"] = {"ms": ms, "extra_gb": gb, "distinct_ids": len(index.ids_U), "estimate_ms": {
        name: 1000 * value for name, value in estimate(bench, hidden, weight, index).items()}}
    return figures(where, ms, gb, estimate(bench, hidden, weight, index),
                   targeted=(width, support) == TARGET_SHAPE and weight_dtype == BFLOAT16)


def estimate(bench: Bench, hidden, weight, index: SupportIndex) -> dict[str, float]:
    """What the rule goes by."""
    name = torch.cuda.get_device_name() if bench.gpu else ""
    return seconds(Problem.of(hidden, weight, index), rates_of(name))


def figures(where: str, ms: dict, gb: dict, estimate: dict, targeted: bool) -> list[Figure]:
    """Times, ratios to the best dense side, and whether the rule takes the faster path."""
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
                     "times", RULE_LOSES if targeted else None, True)]
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
    """What paths.MEASURED has to hold for this device, at the shapes that the paths have: products of a chunk with 2048
    distinct ids, rows that are copied, and rows that the fused kernels gather."""
    width, support = (24, 4) if bench.tiny else TARGET_SHAPE
    chunk, ids, rows, loops = (8, 16, 1000, 1) if bench.tiny else (1024, 2048, 2**20, 40)
    found, products = {}, dict(paths.ESTIMATED.products)
    for kind, dtype in (("bfloat16", BFLOAT16), ("tf32", FLOAT32), ("float32", FLOAT32)):
        if kind == "bfloat16" and not bench.gpu:
            continue
        a, b = (torch.randn(size, width, device=bench.device).to(dtype) for size in (chunk, ids))

        def multiplied(a=a, b=b):
            for _ in range(loops):
                product(a, b.t())

        time_ms = with_tf32(lambda: bench.ms(multiplied)) if kind == "tf32" else bench.ms(multiplied)
        products[kind] = found[f"products of {kind}"] = 2 * chunk * ids * width * loops / time_ms * 1000
    table = torch.randn(rows, 256, device=bench.device)
    streamed = found["streamed bytes"] = 2 * table.nbytes / bench.ms(table.clone) * 1000
    gathered = paths.ESTIMATED.gathered
    if "fused" in paths_here(bench):
        hidden, weight, ids_NS, _ = problem(bench, width, support, BFLOAT16)
        index, fused = SupportIndex.build(ids_NS), paths_here(bench)["fused"]
        with torch.no_grad():
            time_ms = bench.ms(lambda: fused.dots(hidden, weight, index))
        gathered = found["gathered bytes"] = ids_NS.numel() * width * weight.element_size() / time_ms * 1000
    word = torch.cuda.get_device_name().removeprefix("NVIDIA ").split()[0] if bench.gpu else "CPU"
    listed = ", ".join(f'"{kind}": {rate:.3g}' for kind, rate in products.items())
    bench.notes["rates"] = found
    bench.notes["paste"] = f'    "{word}": Rates({gathered:.3g}, {streamed:.3g}, {{{listed}}}),'
    return [Figure(f"rate: {name}", value / 1e12, "T/s") for name, value in found.items()]


def indexing(bench: Bench) -> list[Figure]:
    """What sorting a support costs, which training does once for each forward pass."""
    _, _, ids, _ = problem(bench, 8, 4 if bench.tiny else 64, BFLOAT16)
    return [Figure(f"index of {ids.shape[0]} x {ids.shape[1]} ids, made on the device",
                   bench.ms(lambda: SupportIndex.build(ids, CHUNK)), "ms")]


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
