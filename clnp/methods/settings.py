"""The settings that all methods share, and the one table that checks them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..learner.settings import CHECKS as LEARNER

# setting -> (what is expected, check); those that `clnp.Settings` has too are checked alike
CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **{k: LEARNER[k] for k in ("head", "lr", "epochs", "batch_size", "schedule", "seed", "dtype")},
    "optimizer": ("'adam' or 'sgd'", lambda v: v in ("adam", "sgd")),
    "momentum": (
        "a number in [0, 1)",
        lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v < 1,
    ),
    "reset_optimizer": ("True or False", lambda v: isinstance(v, bool)),
}


@dataclass(frozen=True)
class MethodSettings:
    """How a method trains.

    Attributes:
        head: "single": all tasks share the outputs; "multi": an output layer for each.
        lr, epochs, batch_size, schedule, seed, dtype: as in `clnp.Settings`.
        optimizer: "adam" or "sgd" (EsaCL's own steps apart).
        momentum: of "sgd".
        reset_optimizer: start every task with fresh moments; False carries them on.
    """

    head: str = "multi"
    lr: float = 1e-3
    epochs: int = 10
    batch_size: int = 256
    schedule: str = "constant"
    seed: int = 0
    dtype: str = "fp32"
    optimizer: str = "adam"
    momentum: float = 0.0
    reset_optimizer: bool = True

    def __post_init__(self) -> None:
        for name, (wanted, holds) in CHECKS.items():
            value = getattr(self, name)
            if not holds(value):
                raise ConfigError(f"{name}={value!r}: expected {wanted}")

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `MethodSettings(**data)`."""
        return dataclasses.asdict(self)
