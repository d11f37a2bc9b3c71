"""The named objectives, one file each: the formula with p and q named, its source, its limits, its composition.

In every file p is the student at a position, q the teacher, p_0 the checkpoint that wrote the rollouts, S the support,
P_S and Q_S the masses on it, y_t the sampled token, c = (x, y_<t) what it follows, sg a stop-gradient; N positions, K
entries of the teacher's stored list, k of the student's.

Sources: REV = Revisiting OPD (arXiv 2603.25562), RETH = Rethinking OPD (2604.13016), MANY = The Many Faces of OPD
(2605.11182), ASYNC = AsyncOPD (2606.24143), LOPD = Lightning OPD (2604.13010), GKD (2306.13649), DistiLLM (2402.03898).
"""

import difflib
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace

from pipeline.objectives.objective import Objective
from pipeline.objectives.presets.custom import custom
from pipeline.objectives.presets.dense import dense
from pipeline.objectives.presets.forward_kl_topk import forward_kl_topk
from pipeline.objectives.presets.full_vocabulary import full_vocabulary
from pipeline.objectives.presets.gkd import gkd
from pipeline.objectives.presets.lightning import lightning
from pipeline.objectives.presets.non_overlap_only import non_overlap_only
from pipeline.objectives.presets.overlap_only import overlap_only
from pipeline.objectives.presets.sampled_token import sampled_token
from pipeline.objectives.presets.sampled_token_masked import sampled_token_masked
from pipeline.objectives.presets.skewed_topk import skewed_topk
from pipeline.objectives.presets.stop_gradient_topk import stop_gradient_topk
from pipeline.objectives.presets.student_topk import student_topk
from pipeline.objectives.presets.tail_bucket_topk import tail_bucket_topk
from pipeline.objectives.presets.teacher_topk_lsm import teacher_topk_lsm
from pipeline.objectives.presets.truncated_topk import truncated_topk
from pipeline.objectives.presets.union_topk import union_topk
from pipeline.objectives.reduction import REDUCTIONS
from storage.errors import UserError

PRESETS: dict[str, Callable[..., Objective]] = {preset.__name__: preset for preset in (
    teacher_topk_lsm, student_topk, union_topk, overlap_only, non_overlap_only, tail_bucket_topk, forward_kl_topk, gkd,
    skewed_topk, stop_gradient_topk, truncated_topk, full_vocabulary, sampled_token, sampled_token_masked, lightning,
    dense, custom)}
"""By `objective.type`."""


def build(config, reduction: str = "token_mean") -> Objective:
    """The objective that a config's `objective` section names, with the reduction that `train.reduction` names.

    Raises UserError for a custom objective that cannot be had, or that sums up in its own way under another reduction.
    """
    objective = PRESETS[config.type](config)
    if is_dataclass(objective) and "reduction" in {field.name for field in fields(objective)}:
        return replace(objective, reduction=REDUCTIONS[reduction])
    if reduction != "token_mean":
        raise UserError(f"train.reduction = {reduction!r}, but the objective {objective.name} has factors and units of "
                        "its own: drop train.reduction, or make it a dataclass with a field `reduction`")
    return objective


def nearest(name: str) -> str:
    """"; did you mean ...?" where a preset's name is close to `name`, else nothing."""
    near = difflib.get_close_matches(name.replace(".", "_"), PRESETS, n=1, cutoff=0.8)
    return f"; or did you mean objective.type = {near[0]!r}?" if near else ""
