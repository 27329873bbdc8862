"""The learner's settings and the one table that checks them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from clnp.errors import ConfigError
from clnp.forgetting import per_layer
from clnp.heads import HEADS
from clnp.train import SCHEDULES

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SPARSIFIERS = ("activity", "sdp")
SEARCHES = ("auto", "joint", "layerwise", "global")


@dataclass(frozen=True)
class FineTune:
    """Training of the surviving channels after pruning (paper, Sec. 3.2, "CLNP + fine tuning").

    Attributes:
        epochs, lr: as in training.
        l1: as in `Settings`; None takes that of training.
    """

    epochs: int = 20
    lr: float = 1e-4
    l1: Any = None


@dataclass(frozen=True)
class Settings:
    """How a `Learner` learns. Fractions are fractions (margin 0.0005 is the paper's m = 0.05 %).

    Attributes:
        head: "single" or "multi" (paper, Fig. 2).
        margin: validation accuracy given up for sparsity.
        l1: alpha of the L1 penalty alpha * sum |w|: one number, one per layer (the head last), or
            {layer: alpha}.
        lr, epochs, batch_size, schedule: of training with Adam; schedule is "constant", "step" or
            "cosine".
        seed: of everything random.
        grid: None, or {"l1": [...], "lr": [...]}: graceful forgetting over all combinations.
        grid_first_only: search the grid on the first task only and keep what it chose (as the paper
            does on permuted MNIST, Sec. 3.1).
        search: "joint" (divides the margin among the groups for the fewest channels), "layerwise"
            (last group first), "global" (one threshold in units of each group's mean activity: far
            fewer evaluations) or "auto" ("joint" up to 8 groups, "global" beyond).
        fine_tune: None or `FineTune`.
        dtype: "fp32", or "bf16" to train under autocast; evaluation is always in the network's own
            dtype.
        reinit_scale: factor on re-initialised hidden weights.
        granularity: active channels per group are rounded up to a multiple of this.
        sparsifier: "activity" (L1 penalty and mean activity, the paper's) or "sdp" (structured
            sharpness-aware Frank-Wolfe steps and the norm of a channel's weights; `l1` then serves
            fine-tuning only).
        cache: "auto" computes the activations of frozen channels once per task instead of once per
            step where they are the same in every epoch (examples held as tensors, nothing random
            before the layer, within 2 GiB); "off" never.
    """

    head: str = "multi"
    margin: float = 0.0005
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
    reinit_scale: float = 1.0
    granularity: int = 1
    sparsifier: str = "activity"
    cache: str = "auto"

    def __post_init__(self) -> None:
        for name, (wanted, holds) in CHECKS.items():
            value = getattr(self, name)
            if not holds(value):
                raise ConfigError(f"{name}={value!r}: expected {wanted}")
        tune = self.fine_tune
        if isinstance(tune, dict):
            unknown = set(tune) - {f.name for f in dataclasses.fields(FineTune)}
            if unknown:
                raise ConfigError(
                    f"fine_tune: unknown keys {sorted(unknown)}; there are epochs, lr, l1"
                )
            object.__setattr__(self, "fine_tune", FineTune(**tune))
            tune = self.fine_tune
        if tune is not None:
            if not isinstance(tune, FineTune):
                raise ConfigError(f"fine_tune={tune!r}: expected None, a FineTune or a dictionary")
            for name in ("epochs", "lr"):
                wanted, holds = CHECKS[name]
                if not holds(getattr(tune, name)):
                    raise ConfigError(
                        f"fine_tune {name}={getattr(tune, name)!r}: expected {wanted}"
                    )

    def check_layers(self, layers: list[str]) -> None:
        """Raises ConfigError where an L1 setting does not fit a network with these layers."""
        per_layer(self.l1, layers)
        if self.fine_tune is not None and self.fine_tune.l1 is not None:
            per_layer(self.fine_tune.l1, layers, "fine_tune l1")

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `Settings(**data)`."""
        return dataclasses.asdict(self)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(names: Any) -> tuple[str, Callable[[Any], bool]]:
    return f"one of {sorted(names)}", lambda v: isinstance(v, str) and v in names


# setting -> (what is expected, check)
CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "head": _one_of(HEADS),
    "margin": ("a fraction in [0, 1)", lambda v: _number(v) and 0 <= v < 1),
    "lr": ("a positive number", lambda v: _number(v) and v > 0),
    "epochs": ("an integer >= 1", lambda v: _whole(v) and v >= 1),
    "batch_size": ("an integer >= 1", lambda v: _whole(v) and v >= 1),
    "schedule": _one_of(SCHEDULES),
    "seed": ("an integer >= 0", lambda v: _whole(v) and v >= 0),
    "grid_first_only": ("True or False", lambda v: isinstance(v, bool)),
    "search": _one_of(SEARCHES),
    "dtype": _one_of(DTYPES),
    "reinit_scale": ("a number > 0", lambda v: _number(v) and v > 0),
    "sparsifier": _one_of(SPARSIFIERS),
    "cache": _one_of(("auto", "off")),
    "granularity": ("an integer >= 1", lambda v: _whole(v) and v >= 1),
}
