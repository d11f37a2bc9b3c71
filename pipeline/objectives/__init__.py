"""The losses: what a student learns from the cached scores of a round.

Every dense objective is a support, a divergence, a rule for the mass outside, a stop-gradient and a reduction
(dense.py); sampled-token ones are policy gradients (policy_gradient.py). presets/ names the compositions,
one file each; custom.py takes the user's own.
"""

from pipeline.objectives.batch import StudentLogits, TokenBatch
from pipeline.objectives.objective import Objective
from pipeline.objectives.presets import build

__all__ = ["Objective", "StudentLogits", "TokenBatch", "build"]
