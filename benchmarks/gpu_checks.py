"""Correctness on the device: every path of the support head and the normaliser against slow dense references."""

import torch
import torch.nn.functional as F

from benchmarks.gpu_figures import Figure
from benchmarks.gpu_stage_checks import stage_cases
from benchmarks.gpu_tools import Bench, largest_error, zipf_ids
from pipeline.train.current import summary
from pipeline.train.log_normaliser import log_normaliser
from pipeline.train.support import gemm, paths
from pipeline.train.support.head import support_logits
from pipeline.train.support.index import CHUNK, SupportIndex

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
HEADS = {"plain": {}, "bias, scale, softcap": {"bias": True, "scale": 1.5, "softcap": 20.0}}
TOLERANCE = {FLOAT32: 1e-5, BFLOAT16: 1e-2}
"""Of gradients, relative to the largest, by the dtype they are stored in."""


def cases(bench: Bench) -> list:
    found = [("Triton", lambda: triton(bench)),
             ("support head against dense float64", lambda: support_head(bench)),
             ("support head at a real head's size", lambda: real_size(bench)),
             ("normaliser and summary", lambda: normaliser(bench))]
    return found + stage_cases(bench)


def paths_here(bench: Bench) -> dict:
    """Paths of the support head that run here."""
    triton = paths.triton_runs() and (not bench.gpu or paths.launches(bench.device))
    return paths.paths() if triton else {"gemm": gemm}


def triton(bench: Bench) -> list[Figure]:
    """On a GPU everything else of Triton is left out where this fails: the reason is a warning."""
    return [Figure("Triton builds and launches a kernel", float("fused" in paths_here(bench)), "", 1.0)]


def head(vocabulary: int, width: int, positions: int, support: int, dtypes, bench: Bench, options: dict):
    """(hidden, weight, ids, options) with gradients wanted."""
    torch.manual_seed(0)
    hidden = torch.randn(positions, width, device=bench.device).to(dtypes[0]).requires_grad_()
    weight = (torch.randn(vocabulary, width, device=bench.device) / width**0.5).to(dtypes[1]).requires_grad_()
    bias = torch.randn(vocabulary, device=bench.device).to(dtypes[1]).requires_grad_() if options.get("bias") else None
    ids = zipf_ids(positions, support, vocabulary, bench.device)
    return hidden, weight, ids, {"scale": 1.0, "softcap": None, **options, "bias": bias}


def dense_logits(hidden, weight, options):
    raw = F.linear(hidden, weight, options["bias"]) * options["scale"]
    return raw if options["softcap"] is None else options["softcap"] * torch.tanh(raw / options["softcap"])


def exact(hidden, weight, options):
    """The same in float64."""
    double = {name: value.detach().double().requires_grad_() if isinstance(value, torch.Tensor) else value
              for name, value in options.items()}
    return hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_(), double


def worst_error(leaves, references) -> float:
    """Largest error of a gradient, as a share of what its dtype is allowed."""
    return max(largest_error(leaf.grad, reference.grad) / TOLERANCE[leaf.dtype]
               for leaf, reference in zip(leaves, references) if leaf is not None)


def clear(*leaves) -> None:
    for leaf in leaves:
        if leaf is not None:
            leaf.grad = None


def support_head(bench: Bench) -> list[Figure]:
    sizes = (60, 24, 9, 8) if bench.tiny else (9000, 1000, 1500, 64)
    figures = []
    for name, path in paths_here(bench).items():
        for dtypes in ((FLOAT32, FLOAT32), (BFLOAT16, FLOAT32), (BFLOAT16, BFLOAT16)):
            if not bench.gpu and dtypes[0] != FLOAT32:
                continue  # Triton's interpreter cuts what a GPU rounds
            worst, repeatable = 0.0, True
            for changes in HEADS.values():
                hidden, weight, ids, options = head(*sizes, dtypes, bench, changes)
                ids[:, 1] = ids[:, 0]
                *double, double_options = exact(hidden, weight, options)
                cotangent = torch.randn(ids.shape, device=bench.device)
                dense_logits(*double, double_options).gather(1, ids).backward(cotangent.double())
                runs = []
                for _ in range(2):
                    clear(hidden, weight, options["bias"])
                    index = SupportIndex.build(ids, CHUNK)
                    support_logits(hidden, weight, index, path=path, **options).backward(cotangent)
                    runs.append([leaf.grad for leaf in (hidden, weight, options["bias"]) if leaf is not None])
                leaves = (hidden, weight, options["bias"])
                worst = max(worst, worst_error(leaves, (*double, double_options["bias"])))
                repeatable &= all(torch.equal(a, b) for a, b in zip(*runs))
            kinds = "/".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            figures.append(Figure(f"{name} {kinds}: gradients' error / tolerance", worst, "", 1.0, True))
            figures.append(Figure(f"{name} {kinds}: repeats bit for bit", float(repeatable), "", 1.0))
    return figures


def real_size(bench: Bench) -> list[Figure]:
    """V 151,936, d 896, K 64: float32 gradients within 1e-5 of dense."""
    sizes = (300, 32, 12, 8) if bench.tiny else (151_936, 896, 512, 64)
    figures = []
    for name, path in paths_here(bench).items():
        hidden, weight, ids, options = head(*sizes, (FLOAT32, FLOAT32), bench, {})
        loss = lambda logits: (logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        loss(support_logits(hidden, weight, SupportIndex.build(ids, CHUNK), path=path)).backward()
        found = hidden.grad, weight.grad
        clear(hidden, weight)
        loss(F.linear(hidden, weight).gather(1, ids)).backward()
        error = max(largest_error(a, b) for a, b in zip(found, (hidden.grad, weight.grad)))
        figures.append(Figure(f"{name} at V {sizes[0]}, d {sizes[1]}: float32 gradients' error", error, "", 1e-5, True))
    return figures


def normaliser(bench: Bench) -> list[Figure]:
    sizes = (60, 24, 9, 8) if bench.tiny else (9000, 1000, 2500, 64)
    figures = []
    for dtypes in ((FLOAT32, FLOAT32), (BFLOAT16, BFLOAT16)):
        hidden, weight, ids, options = head(*sizes, dtypes, bench, HEADS["bias, scale, softcap"])
        *double, double_options = exact(hidden, weight, options)
        logits = dense_logits(*double, double_options)
        dense = logits.scatter(1, ids, -torch.inf).logsumexp(1)
        dense.sum().backward()
        found = log_normaliser(hidden, weight, exclude=SupportIndex.build(ids, CHUNK), **options)
        found.sum().backward()
        kind = str(dtypes[0]).removeprefix("torch.")
        leaves = (hidden, weight, options["bias"])
        figures += [Figure(f"normaliser {kind}: error", (found - dense).abs().max().item(), "nat", 1e-4, True),
                    Figure(f"normaliser {kind}: gradients' error / tolerance",
                           worst_error(leaves, (*double, double_options["bias"])), "", 1.0, True)]
        with torch.no_grad():
            whole, log_p = summary(hidden, weight, 8, **options), logits.detach().log_softmax(1)
            entropy = -(log_p.exp() * log_p).sum(1)
        error = max((whole.lse_N - logits.logsumexp(1)).abs().max(), (whole.entropy_N - entropy).abs().max())
        figures.append(Figure(f"summary {kind}: error of lse and entropy", error.item(), "nat", 1e-3, True))
    return figures
