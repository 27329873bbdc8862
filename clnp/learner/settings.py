"""The learner's settings and the one table that checks them."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError
from ..network.heads import HEADS
from ..pruning.margin import check_margin
from ..training.fit import SCHEDULES
from ..training.score import WANTED, is_score, name_of
from .grid import per_layer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SPARSIFIERS = ("activity", "contribution", "sdp")
# Settings of older files that are gone, with the value that had no effect.
REMOVED = {"reinit_scale": 1.0, "compensate": False}
SEARCHES = ("auto", "joint", "global")


@dataclass(frozen=True)
class FineTune:
    """Training of the surviving channels after pruning (paper, Sec. 3.2, "CLNP + fine tuning").

    Attributes:
        epochs, lr: as in training.
        l1: as in `Settings`; None takes that of training.
        schedule: as in training.
        rounds: how often pruning (within the same margin) and fine-tuning are done, one after the
            other; the paper does one (Sec. 2.2).
    """

    epochs: int = 20
    lr: float = 1e-4
    l1: Any = None
    schedule: str = "constant"
    rounds: int = 1


@dataclass(frozen=True)
class Settings:
    """How a `Learner` learns. Fractions are fractions (margin 0.0005 is the paper's m = 0.05 %).

    Attributes:
        head: "single" or "multi" (paper, Fig. 2).
        margin: how much of the validation split's score is given up for sparsity; of accuracies a
            fraction, of a function whatever it returns.
        score: what the margin is held on: "accuracy", "balanced accuracy" (the mean of the recalls
            of the classes that occur in the validation split: rare classes count as much as others)
            or a function (logits [N, C], labels [N]) -> number, higher is better. It is called with
            the whole validation split at once, on the CPU, for every network that is evaluated.
        l1: alpha of the L1 penalty alpha * sum |w|: one number, one per layer (the head last), or
            {layer: alpha}.
        lr, epochs, batch_size, schedule: of training with Adam; schedule is "constant", "step" or
            "cosine".
        seed: of everything random.
        grid: None, or {"l1": [...], "lr": [...]}: graceful forgetting over all combinations.
        grid_first_only: search the grid on the first task only and keep what it chose (as the paper
            does on permuted MNIST, Sec. 3.1).
        search: "joint" (divides the margin among the groups, so that of what is free in each the
            squared fractions that are kept add up to least), "global" (one threshold in units of
            each group's mean activity: far fewer evaluations) or "auto" ("joint" up to 8 groups,
            "global" beyond).
        fine_tune: None or `FineTune`.
        dtype: "fp32", or "bf16" to train under autocast; evaluation is always in the network's own
            dtype.
        granularity: active channels per group are rounded up to a multiple of this.
        growth: the most free channels that a task after the first may train, and so claim: None
            (all), one number for every prunable group, one per group in execution order, or
            {group: number}, where a group that is not named takes all.
        first_growth: the same for the first task.
        sparsifier: "activity" (L1 penalty, channels ranked by mean activity: the paper's),
            "contribution" (L1 penalty, channels ranked by what they add to the layers that read
            them) or "sdp" (structured sharpness-aware Frank-Wolfe steps, channels ranked by the
            norm of their weights; `l1` then serves fine-tuning only).
        cache: "auto" computes the activations of frozen channels once per task instead of once per
            step where they are the same in every epoch (examples held as tensors, nothing random
            before the layer, within 2 GiB); "off" never.
        stack: train the grid points of a task as one network of stacked weights, where the network
            is one of linear layers, dropout and elementwise operations: "auto" on a GPU, "on" on
            a CPU too, "off" never. The outcome is that of single runs within rounding.
        infer_tasks: after each task, measure on all test splits how often `model.predict` is right
            without being told the task (`TaskReport.inferred`): one pass of the widest network.
    """

    head: str = "multi"
    margin: float = 0.0005
    score: Any = "accuracy"
    l1: Any = 0.0
    lr: float = 1e-3
    epochs: int = 10
    batch_size: int = 256
    schedule: str = "constant"
    seed: int = 0
    grid: dict[str, list[Any]] | None = None
    grid_first_only: bool = False
    search: str = "auto"
    fine_tune: FineTune | None = None
    dtype: str = "fp32"
    granularity: int = 1
    growth: Any = None
    first_growth: Any = None
    sparsifier: str = "activity"
    cache: str = "auto"
    stack: str = "auto"
    infer_tasks: bool = True

    def __post_init__(self) -> None:
        for name, (wanted, holds) in CHECKS.items():
            value = getattr(self, name)
            if not holds(value):
                raise ConfigError(f"{name}={value!r}: expected {wanted}")
        check_margin(self.margin, self.score)
        tune = self.fine_tune
        if isinstance(tune, dict):
            unknown = set(tune) - {f.name for f in dataclasses.fields(FineTune)}
            if unknown:
                names = ", ".join(f.name for f in dataclasses.fields(FineTune))
                raise ConfigError(f"fine_tune: unknown keys {sorted(unknown)}; there are {names}")
            object.__setattr__(self, "fine_tune", FineTune(**tune))
            tune = self.fine_tune
        if tune is not None:
            if not isinstance(tune, FineTune):
                raise ConfigError(f"fine_tune={tune!r}: expected None, a FineTune or a dictionary")
            for name, (wanted, holds) in FINE_TUNE_CHECKS.items():
                if not holds(getattr(tune, name)):
                    raise ConfigError(
                        f"fine_tune {name}={getattr(tune, name)!r}: expected {wanted}"
                    )

    def check_layers(self, layers: list[str], groups: Sequence[str] = ()) -> None:
        """Raises ConfigError where a setting does not fit a network with these layers and prunable
        groups.
        """
        for first in (True, False):
            self.most_new(groups, first=first)
        per_layer(self.l1, layers)
        if self.fine_tune is not None and self.fine_tune.l1 is not None:
            per_layer(self.fine_tune.l1, layers, "fine_tune l1")

    def most_new(self, groups: Sequence[str], *, first: bool = False) -> dict[str, int]:
        """Group -> the most channels that a task may claim; groups without a limit are left out.

        Arguments:
            groups: names of the prunable groups, in execution order.
            first: the first task, not a later one.

        Raises:
            ConfigError: another number of limits than groups, an unknown group, or a limit that is
                no whole number >= 1.
        """
        name = "first_growth" if first else "growth"
        growth = getattr(self, name)
        if growth is None:
            return {}
        if isinstance(growth, (list, tuple)):
            if len(growth) != len(groups):
                raise ConfigError(
                    f"{name}={list(growth)}: expected {len(groups)} numbers, one for each of "
                    f"{list(groups)}"
                )
            growth = dict(zip(groups, growth, strict=True))
        elif not isinstance(growth, dict):
            growth = dict.fromkeys(groups, growth)
        unknown = sorted(set(growth) - set(groups))
        if unknown:
            raise ConfigError(f"{name}: no groups named {unknown}; there are {list(groups)}")
        for group, most in growth.items():
            if not _whole(most) or most < 1:
                raise ConfigError(f"{name} of {group!r}: got {most!r}, expected an integer >= 1")
        return dict(growth)

    def changed(self) -> dict[str, Any]:
        """Settings that differ from their defaults."""
        fields = dataclasses.fields(self)
        return {f.name: v for f in fields if (v := getattr(self, f.name)) != f.default}

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `Settings(**data)`. A function as score becomes its name
        (`clnp.training.score.given_again`).
        """
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        tune = None if self.fine_tune is None else dataclasses.asdict(self.fine_tune)
        return copy.deepcopy({**data, "fine_tune": tune, "score": name_of(self.score)})


def without_removed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an older file, less those that are gone where they had no effect."""
    return {name: v for name, v in data.items() if name not in REMOVED or v != REMOVED[name]}


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(names: Any) -> tuple[str, Callable[[Any], bool]]:
    return f"one of {sorted(names)}", lambda v: isinstance(v, str) and v in names


# setting -> (what is expected, check)
CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "head": _one_of(HEADS),
    "score": (WANTED, is_score),
    "lr": ("a positive number", lambda v: _number(v) and v > 0),
    "epochs": ("an integer >= 1", lambda v: _whole(v) and v >= 1),
    "batch_size": ("an integer >= 1", lambda v: _whole(v) and v >= 1),
    "schedule": _one_of(SCHEDULES),
    "seed": ("an integer >= 0", lambda v: _whole(v) and v >= 0),
    "grid_first_only": ("True or False", lambda v: isinstance(v, bool)),
    "search": _one_of(SEARCHES),
    "dtype": _one_of(DTYPES),
    "sparsifier": _one_of(SPARSIFIERS),
    "cache": _one_of(("auto", "off")),
    "stack": _one_of(("auto", "on", "off")),
    "infer_tasks": ("True or False", lambda v: isinstance(v, bool)),
    "granularity": ("an integer >= 1", lambda v: _whole(v) and v >= 1),
}
FINE_TUNE_CHECKS = {
    **{name: CHECKS[name] for name in ("epochs", "lr", "schedule")},
    "rounds": CHECKS["epochs"],
}
