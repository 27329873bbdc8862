"""The metric of Avalanche that says whether tasks were told or inferred."""

from __future__ import annotations

from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import stream_type


class InferredTasks(PluginMetric[float]):
    """Fraction of an evaluated stream's examples whose task was inferred, not given: whether its
    accuracies are class-incremental (1) or task-incremental (0). Every `CLNP` adds it to its
    evaluator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def __str__(self) -> str:
        return "Task_Inferred_Stream"

    def reset(self, strategy: Any = None) -> None:
        """Forgets the examples seen so far."""
        self.inferred = self.examples = 0

    def result(self, strategy: Any = None) -> float:
        """The fraction so far."""
        return self.inferred / max(self.examples, 1)

    def before_eval(self, strategy: Any) -> None:
        """A stream begins."""
        self.reset()

    def after_eval_iteration(self, strategy: Any) -> None:
        """A minibatch was evaluated."""
        self.inferred += strategy.inferred
        self.examples += len(strategy.mb_x)

    def after_eval(self, strategy: Any) -> MetricValue:
        """A stream is done."""
        stream = "no" if strategy.experience is None else stream_type(strategy.experience)
        name = f"{self}/eval_phase/{stream}_stream"
        return MetricValue(self, name, self.result(), strategy.clock.train_iterations)
