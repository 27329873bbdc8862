"""Numbers and counts as text, for tables on the console and on pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MOST_LAYERS = 6  # in one table
PHASES = ("fit", "search", "fine_tune", "evaluate", "total")  # of a task's time
SUMMARIES = ("acc", "bwt", "forgetting")
COST = ("flops", "examples", "peak_memory", "seconds")
# measure of `TaskReport.inferred` -> the words for a right answer
INFERRED = {"task": "task", "class_incremental": "task and label", "domain_incremental": "label"}


def number(value: float | None) -> str:
    """Four digits, more where those would hide that it isn't zero; "0" exactly for zero; "n/a" for
    None.
    """
    if value is None or math.isnan(value):
        return "n/a"
    if value == 0:
        return "0"
    return f"{value:.4f}" if abs(value) >= 1e-4 else f"{value:.1e}"


def spread(value: Mapping[str, Any], percent: bool = False) -> str:
    """ "0.9842 +- 0.0004" of {"mean", "std"}; the mean alone where there is no deviation."""
    mean, std = value["mean"], value["std"]
    if percent:
        return f"{100 * mean:.1f}" + (f" +- {100 * std:.1f} %" if std is not None else " %")
    return number(mean) + (f" +- {number(std)}" if std is not None else "")
