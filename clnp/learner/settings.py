"""The learner's settings: one row each, from which checks, help and documentation come."""

# ruff: noqa: RUF009 (`setting` makes a dataclass field)

from __future__ import annotations

import copy
import dataclasses
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from typing_extensions import TypedDict

from ..errors import ConfigError
from ..network.heads import HEADS
from ..objectives.losses import Loss
from ..objectives.metrics import Metric
from ..objectives.objective import (
    LOSS_WANTED,
    METRIC_WANTED,
    described,
    loss_of,
    metric_of,
    objective_of,
)
from ..pruning.margin import check_margin
from ..ranges import Range, choice, flag, number, optional, whole
from ..training.fit import SCHEDULES
from .budget import AUTO, GRANULARITY, GROWTH, TASKS, limits
from .grid import per_layer

T = TypeVar("T")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SPARSIFIERS = ("activity", "contribution", "sdp")
SEARCHES = ("auto", "joint", "global")
# Of fine_tune="auto": part of the epochs, and how many there have to be.
TUNED, LEAST_EPOCHS = 0.4, 5
# Settings of older files that are gone, with the value that had no effect, or have another name.
REMOVED = {"reinit_scale": 1.0, "compensate": False, "score": "accuracy"}
RENAMED = {"score": "metric"}


@dataclass(frozen=True)
class Row:
    """One setting.

    Attributes:
        values: the accepted ones.
        meaning: its effect, in a line.
        choose: advice on its value; "" where the default serves.
        option: of the command line; "" if there is none.
    """

    values: Range
    meaning: str
    choose: str = ""
    option: str = ""


def setting(default: Any, values: Range, meaning: str, choose: str = "", option: str = "") -> Any:
    """A dataclass field with a default and a `Row`."""
    row = Row(values, meaning, choose, option)
    return dataclasses.field(default=default, metadata={"row": row})


def rows(settings: type) -> dict[str, Row]:
    """Setting -> its row, of a dataclass whose fields are made by `setting`."""
    return {field.name: field.metadata["row"] for field in dataclasses.fields(settings)}


def documented(settings: type[T]) -> type[T]:
    """Appends the rows to the docstring of a dataclass, as its attributes."""
    lines = [
        textwrap.fill(
            f"{name}: {row.meaning} ({row.values.expected}).",
            100,
            initial_indent=" " * 8,
            subsequent_indent=" " * 12,
        )
        for name, row in rows(settings).items()
    ]
    settings.__doc__ = "\n".join([f"{settings.__doc__}\n\n    Attributes:", *lines, "    "])
    return settings


def settings_table(settings: type) -> str:
    """A Markdown table of the settings of a dataclass, such as `Settings`, `FineTune` or
    `clnp.methods.MethodSettings`: name, default, values, meaning, advice, command-line option.
    """
    head = ("setting", "default", "values", "meaning", "how to choose", "command line")
    lines = [head, ("---",) * len(head)]
    for field in dataclasses.fields(settings):
        row: Row = field.metadata["row"]
        option = f"`{row.option}`" if row.option else ""
        named = (f"`{field.name}`", f"`{field.default!r}`")
        lines.append((*named, row.values.expected, row.meaning, row.choose, option))
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)


def check(settings: Any, prefix: str = "") -> None:
    """Raises ConfigError for the first setting out of its range."""
    for name, row in rows(type(settings)).items():
        row.values.check(prefix + name, getattr(settings, name))


PER_LAYER = "a number >= 0, one per layer (the head last), or {layer: number}"


def _any(expected: str) -> Range:
    """A range that needs the network, and is checked with it."""
    return Range(expected, lambda value: True)


@documented
@dataclass(frozen=True)
class FineTune:
    """Training of the surviving channels after pruning (paper, Sec. 3.2, "CLNP + fine tuning")."""

    epochs: int = setting(
        20,
        whole(1),
        "epochs for the survivors after pruning",
        "half as many as for training",
        "--fine-tune-epochs",
    )
    lr: float | None = setting(
        1e-4,
        optional(number(above=True)),
        "learning rate of fine-tuning; None is that of training",
        "a tenth of the rate of training, or that of training on a cosine",
        "--fine-tune-lr",
    )
    l1: Any = setting(
        None,
        _any(f"None, {PER_LAYER}"),
        "L1 coefficient of fine-tuning",
        "None takes that of training",
        "--fine-tune-l1",
    )
    schedule: str = setting(
        "constant",
        choice(SCHEDULES),
        "schedule of the rate of fine-tuning",
        option="--fine-tune-schedule",
    )
    rounds: int = setting(
        1,
        whole(1),
        "times that pruning (within the one margin) and fine-tuning alternate; the paper does one "
        "(Sec. 2.2)",
        "2 to 4 where capacity is short",
        "--fine-tune-rounds",
    )


def _is_fine_tune(value: Any) -> bool:
    return value is None or value == AUTO or isinstance(value, FineTune)


@documented
@dataclass(frozen=True)
class Settings:
    """Settings of a `Learner`. Margin 0.0005 is the paper's m = 0.05 %."""

    head: str = setting(
        "multi",
        choice(HEADS),
        "one output layer for all tasks, or one each (paper, Fig. 2)",
        "multi unless the classes of all tasks are the same",
        "--head",
    )
    margin: float = setting(
        0.0005,
        _any("a fraction in [0, 1); of a metric that is no fraction a number >= 0 in its units"),
        "validation metric that pruning may cost",
        "more frees more channels and costs accuracy; at least a few validation examples' worth",
        "--margin",
    )
    loss: Any = setting(
        None,
        _any(f"None, {LOSS_WANTED}"),
        "loss of the tasks that name none; None is cross-entropy",
        'clnp.objectives.CrossEntropy(weight="balanced") for rare classes; targets other than '
        'class labels are named by the task, `Task(..., loss="mse")`',
        "--loss",
    )
    metric: Any = setting(
        None,
        _any(f"None, {METRIC_WANTED}"),
        "metric of the tasks that name none, in reports and of the margin; None is that of the "
        "loss: accuracy, mean average precision or R2",
        "balanced accuracy for tasks with rare classes; a function gets the whole split at once, "
        "on the CPU, for every network",
        "--metric",
    )
    l1: Any = setting(
        0.0,
        _any(PER_LAYER),
        "L1 coefficient alpha of the penalty alpha * sum |w|",
        "raise it by factors of 3 until the validation metric suffers; 1e-6 to 5e-4 is usual",
        "--l1",
    )
    lr: float = setting(
        2e-3, number(above=True), "learning rate of Adam", "1e-3 where training is unsteady", "--lr"
    )
    epochs: int = setting(
        10,
        whole(1),
        "epochs per task and grid point, those of auto fine-tuning included",
        "until the validation metric levels off; L1 needs more than plain training",
        "--epochs",
    )
    batch_size: int = setting(
        64,
        whole(1),
        "examples per training step",
        "32 for small data sets, more for large ones on a GPU",
        "--batch-size",
    )
    schedule: str = setting(
        "constant",
        choice(SCHEDULES),
        "schedule of the learning rate",
        "step or cosine where epochs are few",
        "--schedule",
    )
    seed: int = setting(0, whole(0), "seed of every random number", option="--seed, --seeds")
    grid: dict[str, list[Any]] | None = setting(
        None,
        _any('None or {"l1": [...], "lr": [...]}'),
        "graceful forgetting over all combinations of these values (paper, Sec. 2.2)",
        "two or three values of l1 around a good one",
        "--grid",
    )
    grid_first_only: bool = setting(
        False,
        flag(),
        "search the grid on the first task and keep its choice (paper, Sec. 3.1)",
        "True where tasks are alike",
        "--grid-first-only",
    )
    search: str = setting(
        "auto",
        choice(SEARCHES),
        "search for thresholds: joint divides the margin among the groups, global has one "
        "threshold in units of each group's mean activity, auto is joint up to 8 groups",
        "global where the search takes too long",
        "--search",
    )
    fine_tune: FineTune | Literal["auto"] | None = setting(
        AUTO,
        Range("auto, None, a FineTune or a dictionary of its fields", _is_fine_tune),
        "training of the surviving channels after pruning; auto takes the last two fifths of the "
        "epochs for it, if there are at least 5, its rate falling on a cosine",
        "None where epochs are too few even for training; a FineTune adds epochs of its own",
        "--fine-tune-epochs",
    )
    dtype: str = setting(
        "fp32",
        choice(DTYPES),
        "bf16 trains under autocast; evaluation is in the network's dtype",
        "bf16 on a GPU or a CPU that has it",
        "--dtype",
    )
    granularity: int | None = setting(
        None,
        GRANULARITY,
        "active channels per group are rounded up to a multiple of this; None is 8 on a GPU, where "
        "kernels load 16 bytes at once then, and 1 elsewhere",
        "1 where every channel counts",
        "--granularity",
    )
    tasks_expected: int | None = setting(
        None,
        TASKS,
        "number of tasks that the network is to learn, by which auto growth divides the channels; "
        "None leaves two thirds of the free channels to later tasks",
        "give it where it is known",
        "--tasks-expected",
    )
    growth: Any = setting(
        AUTO,
        _any(GROWTH),
        "most new channels of a task after the first; auto is an equal part of the free channels",
        "None sets no limit; numbers where layers need different ones",
        "--growth",
    )
    first_growth: Any = setting(
        AUTO,
        _any(GROWTH),
        "most channels of the first task; auto is two equal parts, at most half of a layer",
        "None sets no limit, for one task or for pretrained weights",
        "--first-growth",
    )
    sparsifier: str = setting(
        "contribution",
        choice(SPARSIFIERS),
        "channels are ranked by contribution to the layers that read them or by mean activity (the "
        "paper's), both under L1; sdp takes structured sharpness-aware Frank-Wolfe steps and "
        "ranks by weight norms",
        "activity to repeat the paper",
        "--sparsifier",
    )
    cache: str = setting(
        "auto",
        choice(("auto", "off")),
        "compute the activations of frozen channels once per task where every epoch has the same "
        "(up to 2 GiB)",
        "off to save memory",
    )
    stack: str = setting(
        "auto",
        choice(("auto", "on", "off")),
        "train the grid points of a task as one network of stacked weights where its layers allow "
        "it: auto on a GPU only, on always; outcomes agree within rounding",
    )
    calibration: int = setting(
        64,
        whole(0),
        "validation examples kept of each task, by which `learner.predict` tells tasks apart; at "
        "most 4 MiB a task",
        "0 keeps no data",
    )
    infer_tasks: bool = setting(
        True,
        flag(),
        "measure after each task how often `model.predict` finds the task (`TaskReport.inferred`)",
        "False saves a pass of the widest network over all test splits",
    )

    def __post_init__(self) -> None:
        if isinstance(self.fine_tune, dict):
            unknown = sorted(set(self.fine_tune) - set(rows(FineTune)))
            if unknown:
                raise ConfigError(
                    f"fine_tune: expected some of {', '.join(rows(FineTune))}, got {unknown}"
                )
            object.__setattr__(self, "fine_tune", FineTune(**self.fine_tune))
        check(self)
        metric = check_objective(self.loss, self.metric)
        check_margin(self.margin, metric_of("accuracy") if metric is None else metric)
        if isinstance(self.fine_tune, FineTune):
            check(self.fine_tune, "fine_tune ")

    @property
    def tuning(self) -> FineTune | None:
        """Fine-tuning as it is done; None without."""
        if isinstance(self.fine_tune, FineTune) or self.fine_tune is None:
            return self.fine_tune
        epochs = round(TUNED * self.epochs) if self.epochs >= LEAST_EPOCHS else 0
        return FineTune(epochs, lr=None, schedule="cosine") if epochs else None

    @property
    def training_epochs(self) -> int:
        """Epochs before pruning."""
        within = self.tuning if self.fine_tune == AUTO else None
        return self.epochs - (within.epochs if within else 0)

    def check_layers(self, layers: list[str], groups: Sequence[str] = ()) -> None:
        """Raises ConfigError where a setting does not fit a network with these layers and prunable
        groups.
        """
        for name in ("growth", "first_growth"):
            if getattr(self, name) != AUTO:
                limits(getattr(self, name), groups, name)
        per_layer(self.l1, layers)
        if isinstance(self.fine_tune, FineTune) and self.fine_tune.l1 is not None:
            per_layer(self.fine_tune.l1, layers, "fine_tune l1")

    def changed(self) -> dict[str, Any]:
        """Settings that differ from their defaults."""
        fields = dataclasses.fields(self)
        return {f.name: v for f in fields if (v := getattr(self, f.name)) != f.default}

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `Settings(**data)`. A function as loss or metric becomes its
        name (`clnp.objectives.objective.given_again`).
        """
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        tune: Any = self.fine_tune
        tune = dataclasses.asdict(tune) if isinstance(tune, FineTune) else tune
        own = described_objective(self.loss, self.metric)
        return copy.deepcopy({**data, "fine_tune": tune, **own})


def check_objective(loss: Any, metric: Any) -> Metric | None:
    """The metric of two settings as far as it is known without a task. Raises ConfigError."""
    found = None if metric is None else metric_of(metric)
    own = None if loss is None else loss_of(loss)
    return objective_of(own, found).metric if own is not None else found


def described_objective(loss: Any, metric: Any) -> dict[str, Any]:
    """Plain data of the settings loss and metric."""
    return {
        "loss": None if loss is None else described(loss_of(loss)),
        "metric": None if metric is None else described(metric_of(metric)),
    }


def without_removed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an older file by their present names, less those that are gone where they had no
    effect.
    """
    kept = {name: v for name, v in data.items() if name not in REMOVED or v != REMOVED[name]}
    return {RENAMED.get(name, name): value for name, value in kept.items()}


def check_some(**values: Any) -> None:
    """Raise ConfigError for the first of some settings that is out of its range."""
    for name, value in values.items():
        rows(Settings)[name].values.check(name, value)


class SettingsGiven(TypedDict, total=False):
    """The fields of `Settings` as keyword arguments, for type checkers and completion."""

    head: Literal["multi", "single"]
    margin: float
    loss: str | Loss | Callable[[Any, Any], Any] | None
    metric: str | Metric | Callable[[Any, Any], Any] | None
    l1: float | Sequence[float] | Mapping[str, float]
    lr: float
    epochs: int
    batch_size: int
    schedule: Literal["constant", "step", "cosine"]
    seed: int
    grid: dict[str, list[Any]] | None
    grid_first_only: bool
    search: Literal["auto", "joint", "global"]
    fine_tune: FineTune | Literal["auto"] | None
    dtype: Literal["fp32", "bf16"]
    granularity: int | None
    tasks_expected: int | None
    growth: Literal["auto"] | int | Sequence[int] | Mapping[str, int] | None
    first_growth: Literal["auto"] | int | Sequence[int] | Mapping[str, int] | None
    sparsifier: Literal["activity", "contribution", "sdp"]
    cache: Literal["auto", "off"]
    stack: Literal["auto", "on", "off"]
    calibration: int
    infer_tasks: bool
