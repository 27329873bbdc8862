"""A task's objective: loss and metric, and what follows from them."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .losses import LOSSES, CrossEntropy, Loss, LossFunction
from .metrics import METRICS, PERCENT, Metric, MetricFunction, Value, Whole
from .names import canonical, name_of
from .shapes import CLASSES, LABELS, matched

LOSS_WANTED = f"one of {sorted(LOSSES)}, a clnp.objectives.Loss or a function (outputs, targets)"
METRIC_WANTED = (
    f"one of {sorted(METRICS)}, a clnp.objectives.Metric or a function (outputs, targets) of the "
    "whole split -> number, higher is better"
)


@dataclass(frozen=True)
class Objective:
    """Loss and metric of a task.

    Arguments:
        loss: descended in training; it says what the targets are.
        metric: in reports, in the grid, and in pruning, where the margin is in its units.

    Raises:
        ConfigError: the metric is not one of such targets.
    """

    loss: Loss = dataclasses.field(default_factory=CrossEntropy)
    metric: Metric = dataclasses.field(default_factory=METRICS["accuracy"])

    def __post_init__(self) -> None:
        if self.targets not in self.metric.targets:
            fitting = sorted(name for name, m in METRICS.items() if self.targets in m.targets)
            raise ConfigError(
                f"metric: expected one of {fitting} or a function for loss {self.loss.name!r}, got "
                f"{self.metric.name!r}"
            )

    @property
    def targets(self) -> str:
        """Kind of the targets."""
        return self.loss.targets

    def rows(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [n, C] and targets, [n] for classes and [n, C] otherwise, without the places
        that do not count. Raises DataError where the shapes do not belong together.
        """
        dropped = self.loss.dropped(y)
        outputs, y = matched(self.targets, outputs, y)
        if dropped is None:
            return outputs, y
        kept = ~dropped.flatten()
        return outputs[kept], y[kept]

    def running(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Sum of the metric over the examples of a batch, [] float64; NaN where the metric is no
        mean over examples.
        """
        dropped, found = self.loss.dropped(y), None
        if not isinstance(self.metric, Whole):
            found = self.metric.each(*matched(self.targets, outputs.detach(), y))
        if found is None:
            return torch.full((), torch.nan, dtype=torch.float64, device=outputs.device)
        if dropped is not None:  # without a choice of rows, which a CUDA graph can't hold
            kept = ~dropped.flatten()
            return (found * kept).sum() / kept.sum().clamp(min=1) * len(y)
        return found.sum() if len(found) == len(y) else found.mean() * len(y)

    def oriented(self, value: Value) -> Value:
        """A value of the metric, with its sign changed where lower is better; its own inverse."""
        return value if self.metric.higher_is_better else -value

    def to_json(self) -> dict[str, Any]:
        """Names of loss and metric with their options, for comparison and files."""
        return {"loss": described(self.loss), "metric": described(self.metric)}


def loss_of(setting: Any, targets: str | None = None) -> Loss:
    """The loss that a setting describes.

    Arguments:
        setting: a name, a `Loss`, a function, or the result of `described`.
        targets: kind of the targets of a function.

    Raises:
        ConfigError: none of these; an option out of range.
    """
    if isinstance(setting, Loss):
        return setting
    if callable(setting) and not isinstance(setting, type):
        return LossFunction(setting, targets or CLASSES)
    found = _built_in(setting, {canonical(name): kind for name, kind in LOSSES.items()})
    if found is None:
        raise ConfigError(f"loss: expected {LOSS_WANTED}, got {setting!r}")
    return found


def metric_of(setting: Any) -> Metric:
    """The metric that a setting describes, as for `loss_of`. Raises ConfigError."""
    if isinstance(setting, Metric):
        return setting
    if callable(setting) and not isinstance(setting, type):
        return MetricFunction(setting)
    found = _built_in(setting, {canonical(name): kind for name, kind in METRICS.items()})
    if found is None:
        raise ConfigError(f"metric: expected {METRIC_WANTED}, got {setting!r}")
    return found


def objective_of(loss: Any = None, metric: Any = None, targets: str | None = None) -> Objective:
    """The objective of two settings; None takes cross-entropy, and the metric of the loss."""
    found = CrossEntropy() if loss is None else loss_of(loss, targets)
    return Objective(found, metric_of(found.metric if metric is None else metric))


def default_loss(metric: Metric) -> Loss:
    """The built-in loss of the targets that a metric takes."""
    kinds = {LABELS: LOSSES["bce"], CLASSES: CrossEntropy}
    return kinds.get(metric.targets[0], LOSSES["mse"])()


def described(found: Loss | Metric) -> Any:
    """Plain data of a loss or metric: its name, or {"name", and the options that are not the
    defaults}. A function is described by its name only.
    """
    fields = dataclasses.fields(found) if dataclasses.is_dataclass(found) else ()
    own = {
        field.name: list(value) if isinstance(value, tuple) else value
        for field in fields
        if field.name != "function" and (value := getattr(found, field.name)) != field.default
    }
    function = getattr(found, "function", None)
    name = found.name if function is None else name_of(function)
    return {"name": name, **own} if own else name


def is_percent(metric: Metric) -> bool:
    """True for a metric that is a fraction."""
    return metric.unit == PERCENT


def given_again(what: str, saved: Any, given: Any = None) -> Any:
    """The loss or metric of a learner that is read from a file, which holds no functions.

    Arguments:
        what: "loss" or "metric".
        saved: from the file, of `described`, or None.
        given: by the caller; needed for a function.

    Raises:
        ConfigError: another one is given, or none where the file names a function.
    """
    make = loss_of if what == "loss" else metric_of
    if given is None and (saved is None or _known(make, saved)):
        return saved
    if given is not None and saved is not None and described(make(given)) == saved:
        return given
    got = "nothing" if given is None else repr(described(make(given)))
    raise ConfigError(
        f"{what}: expected {saved!r}, that of the saved learner, got {got}; a file holds no "
        f"functions, so pass the same one: load(path, {what}=function)"
    )


def check_sendable(what: str, setting: Any, workers: int) -> None:
    """Raises ConfigError for a function that can't be sent to worker processes."""
    if workers == 1 or setting is None or isinstance(setting, (str, Mapping)):
        return
    try:
        pickle.dumps(setting)
    except Exception as error:
        raise ConfigError(
            f"{what}: expected a function at the top of a module, to be sent to {workers} workers, "
            f"got {name_of(getattr(setting, 'function', setting))} ({error}); workers=1 sends "
            "nothing"
        ) from error


def _built_in(setting: Any, kinds: Mapping[str, Any]) -> Any:
    """An object of a table by its name, or by {"name", options}; None for anything else."""
    options: dict[str, Any] = {}
    if isinstance(setting, Mapping) and isinstance(setting.get("name"), str):
        options = {k: v for k, v in setting.items() if k != "name"}
        setting = setting["name"]
    kind = kinds.get(canonical(setting)) if isinstance(setting, str) else None
    if kind is None:
        return None
    known = {field.name for field in dataclasses.fields(kind)}
    if set(options) - known:
        raise ConfigError(
            f"{kind.name}: expected options out of {sorted(known)}, got {sorted(options)}"
        )
    return kind(**options)


def _known(make: Any, saved: Any) -> bool:
    try:
        make(saved)
    except ConfigError:
        return False
    return True
