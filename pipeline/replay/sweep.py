"""A sweep: one round replayed under many presets and seeds, each a branch of its own.

    opd replay RUN --round 3 --sweep --seeds 0,1,2

Branches are named <run>.r<round>.<preset>.s<seed>; one that is committed is not played again.
"""

import difflib
from collections.abc import Iterator, Sequence

from pipeline.config import RunConfig
from pipeline.config.objectives import SECTIONS, TYPES
from pipeline.replay.request import MAX_NAME, Request
from storage.errors import UserError
from storage.objects import ObjectStore
from storage.rounds import Round, read_run

WITH_K = [section.model_fields["type"].default for section in SECTIONS if "k" in section.model_fields]
"""Presets whose support has a size."""
SWEPT = ("teacher_topk_lsm", "tail_bucket_topk", "forward_kl_topk", "gkd", "student_topk", "union_topk", "overlap_only",
         "stop_gradient_topk", "truncated_topk", "sampled_token", "sampled_token_masked", "lightning")
"""Presets that every cache can answer; `full_vocabulary` joins where the teacher's hidden states are stored."""
METRICS = ("avg_at_k", "closing_teacher_kl", "closing_student_entropy", "closing_student_mass", "closing_drift",
           "stopped", "steps", "masked_share")


def requests(store: ObjectStore, store_url: str, request: Request, presets: Sequence[str],
             seeds: Sequence[int]) -> Iterator[tuple[str, int, Request]]:
    """(preset, seed, request) for every branch of the sweep. Raises UserError for a preset that there is not."""
    _check_presets(presets)
    config = RunConfig.model_validate({**read_run(store, request.run)["config"], "store": store_url})
    presets = presets or default_presets(Round(store, request.run, request.number))
    for preset in presets:
        for seed in seeds:
            settings = [each for each in request.settings if not each.startswith("objective.k=") or preset in WITH_K]
            yield preset, seed, Request(request.run, request.number, branch_name(request, preset, seed),
                                        [*settings, f"objective.type={preset}", f"seed={seed}"],
                                        _masks(preset, config, request), request.evaluate)


def _check_presets(presets: Sequence[str]) -> None:
    unknown = [each for each in presets if each not in TYPES]
    if unknown:
        near = difflib.get_close_matches(unknown[0], TYPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TYPES)}"
        raise UserError(f"--sweep {unknown[0]}: no preset has this name; {hint}")


def default_presets(source: Round) -> tuple[str, ...]:
    """SWEPT, and what the round's cache allows besides."""
    return (*SWEPT, "full_vocabulary") if source.planned() and source.plan().hidden else SWEPT


def branch_name(request: Request, preset: str, seed: int) -> str:
    """Id of a branch of the sweep; `--as` gives its first part."""
    tail = f".r{request.number}.{preset}.s{seed}"
    return (request.name or request.run)[:MAX_NAME - len(tail)].rstrip(".-_") + tail


def _masks(preset: str, config: RunConfig, request: Request) -> list[str] | None:
    """The masked preset is refused without a special-token mask: the detector joins the run's masks."""
    masked = {mask.type for mask in config.mask} & {"special_tokens", "detector"}
    if preset == "sampled_token_masked" and request.masks is None and not masked:
        return ["+detector"]
    if preset == "sampled_token_masked" and request.masks == ["none"]:
        return ["detector"]
    return request.masks


def rows(store: ObjectStore, branches: Sequence[tuple[str, int, str]], source: tuple[str, int]) -> list[dict]:
    """Rows of the sweep's table, from the view `rounds`: the source round as it was, then each (preset, seed, run)."""
    from storage.catalog import connect, query
    from storage.snapshot import take_snapshot

    asked = [("as it was", None, source[0]), *branches]
    found = []
    for preset, seed, run in asked:
        connection = connect(store, take_snapshot(store, run))
        (row,) = query(connection, f"SELECT {', '.join(METRICS)} FROM rounds WHERE run = $run AND round = $round",
                       {"run": run, "round": source[1]}).to_pylist() or [dict.fromkeys(METRICS)]
        found.append({"preset": preset, "seed": seed, "run": run, "round": source[1], **row})
    return found
