"""The user's own objective: `factory` names what makes it, `options` are its arguments (objectives/custom.py).

    L_n = objective.loss(batch, student)_n

TokenBatch, StudentLogits -> loss_N (objectives/batch.py).
Not for: code you do not trust. The factory's module runs with all rights of this process.
"""

from pipeline.config.objectives import Custom
from pipeline.objectives.custom import load
from pipeline.objectives.objective import Objective


def custom(config: Custom) -> Objective:
    return load(config)
