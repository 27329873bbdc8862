"""Figures drawn from numbers: of one method, and comparisons of several."""

from .figures import (
    accuracy_heatmap,
    capacity,
    inferred_accuracy,
    mean_accuracy,
    reuse,
    save,
    training_curves,
)
from .methods import accuracy_against_cost, mean_accuracies

__all__ = [
    "accuracy_against_cost",
    "accuracy_heatmap",
    "capacity",
    "inferred_accuracy",
    "mean_accuracies",
    "mean_accuracy",
    "reuse",
    "save",
    "training_curves",
]
