"""A metric's numbers as text, for tables, plots and progress."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .metrics import PERCENT, Accuracy, Metric

MISSING = "\N{EN DASH}"


@dataclass(frozen=True)
class Shown:
    """Name and unit under which a metric is written.

    Attributes:
        name: of the metric.
        unit: "%" for a fraction, or the unit, or "".
        higher_is_better: False for an error.
    """

    name: str = Accuracy.name
    unit: str = PERCENT
    higher_is_better: bool = True

    @classmethod
    def of(cls, metric: Metric) -> Shown:
        """Build it for a metric."""
        return cls(metric.name.rpartition(".")[2], metric.unit, metric.higher_is_better)

    @classmethod
    def of_report(cls, report: Mapping[str, Any]) -> Shown:
        """Build it for a `TaskReport` as plain data; older files hold accuracies."""
        name = str(report.get("metric", Accuracy.name)).rpartition(".")[2]
        return cls(name, report.get("unit", PERCENT), report.get("higher_is_better", True))

    @property
    def percent(self) -> bool:
        """True for a fraction, which is shown in per cent."""
        return self.unit == PERCENT

    @property
    def scale(self) -> float:
        """Factor from the value to the number that is shown."""
        return 100.0 if self.percent else 1.0

    @property
    def sign(self) -> int:
        """1, or -1 where lower is better."""
        return 1 if self.higher_is_better else -1

    @property
    def title(self) -> str:
        """ "accuracy (%)", "MAE (mm)", "R2"."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def number(self, value: float | None, digits: int = 2) -> str:
        """A value without its unit; a dash where there is none."""
        if value is None or math.isnan(value):
            return MISSING
        return f"{100 * value:.{digits}f}" if self.percent else f"{value:.{digits + 2}g}"

    def text(self, value: float | None, digits: int = 2) -> str:
        """A value with its unit: "98.43 %", "0.8713", "1.25 mm"."""
        number = self.number(value, digits)
        return f"{number} {self.unit}" if self.unit and number != MISSING else number


def by_metric(reports: Sequence[Mapping[str, Any]]) -> dict[Shown, list[int]]:
    """Metric -> the tasks that have it."""
    groups: dict[Shown, list[int]] = {}
    for k, report in enumerate(reports):
        groups.setdefault(Shown.of_report(report), []).append(k)
    return groups


def common(reports: Sequence[Mapping[str, Any]]) -> Shown | None:
    """Name and unit of the metric of all tasks; None where they have different ones."""
    found = list(by_metric(reports))
    return found[0] if len(found) == 1 else None
