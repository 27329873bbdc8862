"""Objectives of tasks: losses, which say what the targets are, and metrics.

A task names them, `clnp.data.Task(..., loss="mse", metric="R2")`, or the learner does for all tasks
that name none.
"""

from .losses import L1, MSE, BinaryCrossEntropy, CrossEntropy, Huber, Loss, LossFunction
from .metrics import (
    F1,
    R2,
    Accuracy,
    BalancedAccuracy,
    ExactMatch,
    LabelAccuracy,
    MeanAbsoluteError,
    MeanAveragePrecision,
    MeanIoU,
    MeanSquaredError,
    Metric,
    MetricFunction,
    RootMeanSquaredError,
)
from .objective import Objective
from .shown import Shown

__all__ = [
    "F1",
    "L1",
    "MSE",
    "R2",
    "Accuracy",
    "BalancedAccuracy",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "ExactMatch",
    "Huber",
    "LabelAccuracy",
    "Loss",
    "LossFunction",
    "MeanAbsoluteError",
    "MeanAveragePrecision",
    "MeanIoU",
    "MeanSquaredError",
    "Metric",
    "MetricFunction",
    "Objective",
    "RootMeanSquaredError",
    "Shown",
]
