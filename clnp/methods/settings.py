"""The settings that all methods share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..learner.settings import (
    Settings,
    check,
    check_objective,
    described_objective,
    documented,
    setting,
)
from ..ranges import choice, flag, number


def _same(name: str) -> Any:
    """The setting of that name of `clnp.Settings`, with its default and its row."""
    field = Settings.__dataclass_fields__[name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


@documented
@dataclass(frozen=True)
class MethodSettings:
    """Settings of a method's training."""

    head: str = _same("head")
    lr: float = _same("lr")
    epochs: int = _same("epochs")
    batch_size: int = _same("batch_size")
    schedule: str = _same("schedule")
    seed: int = _same("seed")
    dtype: str = _same("dtype")
    loss: Any = _same("loss")  # noqa: RUF009
    metric: Any = _same("metric")  # noqa: RUF009
    optimizer: str = setting(
        "adam", choice(("adam", "sgd")), "optimizer (EsaCL takes its own steps)", option="--set"
    )
    momentum: float = setting(0.0, number(high=1, below=True), "momentum of sgd", option="--set")
    reset_optimizer: bool = setting(
        True, flag(), "start every task with fresh moments; False carries them on", option="--set"
    )

    def __post_init__(self) -> None:
        check(self)
        check_objective(self.loss, self.metric)

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `MethodSettings(**data)`; functions become their names."""
        return {**self.fields(), **described_objective(self.loss, self.metric)}

    def fields(self) -> dict[str, Any]:
        """Setting -> value."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
