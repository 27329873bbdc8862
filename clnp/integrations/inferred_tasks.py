"""Metric of Avalanche for the fraction of examples with an inferred task."""

from __future__ import annotations

from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import stream_type


class InferredTasks(PluginMetric[float]):
    """Fraction of a stream's examples whose task was inferred.

    Accuracies are class-incremental at 1 and task-incremental at 0. `CLNP` adds this metric to its
    evaluator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def __str__(self) -> str:
        return "Task_Inferred_Stream"

    def reset(self, strategy: Any = None) -> None:
        """Start counting anew."""
        self.inferred = self.examples = 0

    def result(self, strategy: Any = None) -> float:
        """Return the fraction so far."""
        return self.inferred / max(self.examples, 1)

    def before_eval(self, strategy: Any) -> None:
        """Start counting at the beginning of a stream."""
        self.reset()

    def after_eval_iteration(self, strategy: Any) -> None:
        """Count the examples of a minibatch."""
        self.inferred += strategy.inferred
        self.examples += len(strategy.mb_x)

    def after_eval(self, strategy: Any) -> MetricValue:
        """Return the value of a stream."""
        stream = "no" if strategy.experience is None else stream_type(strategy.experience)
        name = f"{self}/eval_phase/{stream}_stream"
        return MetricValue(self, name, self.result(), strategy.clock.train_iterations)
