"""The settings of a command-line run, and what is checked of them together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError
from ..learner.budget import AUTO
from ..learner.settings import without_removed
from ..ranges import Range, choice, whole
from .defaults import DEFAULTS
from .options import L1, SETTINGS, Option, is_text

Numbers = tuple[float, ...]
# What `clnp.Learner` and `clnp.methods.make` take alike.
SHARED = ("head", "lr", "epochs", "batch_size", "schedule", "dtype", "device", "loss", "metric")


@dataclass(frozen=True)
class Config:
    """The settings that decide the numbers of a run, and nothing else: no paths, no dates.

    l1 is a tuple of one coefficient for all layers or one per layer (depth + 1); fine_tune_l1 ()
    takes those of training. grid_l1 and grid_lr are the candidates of graceful forgetting, () for
    none. width, depth, dropout, classes_per_task, validation and examples are None where the
    network's or the data's own are taken. image_size and image_range are found out from the data
    where they are not given. options are (name, value) pairs of the method's own. pretrained is the
    SHA-256 of the file of weights that training starts from. A field with a default may be missing
    in an older config.json, which then had this value.

    Raises:
        ConfigError: from `validate`, naming the field.
    """

    stream: str
    tasks: int
    seeds: tuple[int, ...]
    epochs: int
    batch_size: int
    lr: float
    l1: Numbers
    schedule: str
    width: int | None
    depth: int | None
    dropout: float | None
    head: str
    margin: float
    search: str
    grid_l1: tuple[Numbers, ...]
    grid_lr: Numbers
    grid_first_only: bool
    fine_tune_epochs: int | str
    fine_tune_lr: float | None
    fine_tune_l1: Numbers
    granularity: int | None
    dtype: str
    device: str
    threads: int
    net: str = "mlp"
    net_scale: float | None = None
    pretrained: str | None = None
    adopt: bool = False
    method: str = "clnp"
    options: tuple[tuple[str, Any], ...] = ()
    sparsifier: str = "activity"
    split: str | None = None
    classes_per_task: int | None = None
    validation: float | None = None
    identity_first: bool = False
    normalise: str = "constants"
    augment: bool = False
    image_size: int | None = None
    convert_images: bool = False
    fine_tune_schedule: str = "constant"
    fine_tune_rounds: int = 1
    growth: tuple[int | str, ...] = ()
    first_growth: tuple[int | str, ...] = ()
    examples: int | None = None
    init: str | None = None
    image_range: Numbers = ()
    loss: str | None = None
    metric: str | None = None
    class_weights: str | Numbers | None = None
    ignore_label: int | None = None
    tasks_expected: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON has them: lists for tuples."""
        return {field.name: _lists(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The reverse of `as_dict`, validated.

        Raises:
            ConfigError: a setting is missing, unknown or nonsense.
        """
        values = without_removed(values)
        fields = dataclasses.fields(cls)
        known = {field.name for field in fields}
        needed = {field.name for field in fields if field.default is dataclasses.MISSING}
        wrong = sorted((set(values) - known) | (needed - set(values)))
        if wrong:
            raise ConfigError(
                f"configuration: expected the settings of this version, got {', '.join(wrong)} "
                "missing or unknown"
            )
        config = cls(**{name: _tuples(value) for name, value in values.items()})
        validate(config)
        return config

    def for_seed(self, seed: int) -> Config:
        """The same settings with one seed."""
        return dataclasses.replace(self, seeds=(seed,))

    def learner_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `clnp.Learner` for these settings; needs a single seed."""
        grid: dict[str, list[Any]] = {}
        if self.grid_l1:
            grid["l1"] = [_one_or_list(point) for point in self.grid_l1]
        if self.grid_lr:
            grid["lr"] = list(self.grid_lr)
        own_epochs = {
            "epochs": self.fine_tune_epochs,
            "lr": self.fine_tune_lr,
            "schedule": self.fine_tune_schedule,
            "rounds": self.fine_tune_rounds,
            "l1": _one_or_list(self.fine_tune_l1) if self.fine_tune_l1 else None,
        }
        fine_tune = {0: None, AUTO: AUTO}.get(self.fine_tune_epochs, own_epochs)
        own = ["margin", "search", "granularity", "grid_first_only", "sparsifier"]
        return {
            **{name: getattr(self, name) for name in (*SHARED, *own)},
            "loss": self.loss_setting,
            "seed": self.seeds[0],
            "l1": _one_or_list(self.l1),
            "growth": _one_or_list(self.growth) if self.growth else None,
            "first_growth": _one_or_list(self.first_growth) if self.first_growth else None,
            "tasks_expected": self.tasks_expected or self.tasks,
            "grid": grid or None,
            "fine_tune": fine_tune,
        }

    @property
    def loss_setting(self) -> Any:
        """The loss with its options, for `clnp.objectives.objective.loss_of`; None if none is
        given.
        """
        weights = self.class_weights
        options = {
            "weight": list(weights) if isinstance(weights, tuple) else weights,
            "ignore_index": self.ignore_label,
        }
        given = {name: value for name, value in options.items() if value is not None}
        return {"name": self.loss or "cross_entropy", **given} if given else self.loss

    def method_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `clnp.methods.make` for these settings; needs a single seed."""
        shared = {name: getattr(self, name) for name in SHARED} | {"loss": self.loss_setting}
        return {**shared, "seed": self.seeds[0], **dict(self.options)}

    def net_arguments(self) -> dict[str, Any]:
        """Options of `clnp.models.make`; None where the network's own is taken."""
        return {
            "width": self.width,
            "depth": self.depth,
            "dropout": self.dropout,
            "scale": self.net_scale,
            "init": self.init,
        }


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _is_point(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(L1.holds, value))


def defaults(stream: str) -> dict[str, Any]:
    """All settings of an experiment. Raises ConfigError for an unknown one."""
    if stream not in DEFAULTS:
        raise ConfigError(f"stream: expected one of {', '.join(DEFAULTS)}, got {stream!r}")
    return {"stream": stream, "threads": torch.get_num_threads(), **DEFAULTS[stream]}


# The settings that no option of their name gives, and their ranges.
FURTHER: dict[str, Option] = {
    "stream": Option("", choice(DEFAULTS)),
    "seeds": Option("", whole(0, 2**31 - 1), many=1),
    "grid_l1": Option("", Range("a list of numbers >= 0", _is_point), many=0),
    "grid_lr": Option("", SETTINGS["lr"].values, many=0),
    "pretrained": Option("", Range("a file of weights", is_text, str), unset="random weights"),
    "method": Option("", Range("the name of a method", is_text, str)),
    "options": Option("", Range("a NAME=VALUE pair", _is_pair), many=0),
}
# In the order of `Config`, which is that of the complaints.
CHECKS = {
    field.name: {**FURTHER, **SETTINGS}[field.name]
    for field in dataclasses.fields(Config)
    if field.name != "device"
}


def validate(config: Config) -> None:
    """Checks every setting against the table, then those that depend on each other or on this
    machine.

    Raises:
        ConfigError: the first setting that fails.
    """
    for field, row in CHECKS.items():
        value = getattr(config, field)
        if not row.holds(value):
            raise ConfigError(f"{option(field)}: expected {row.expected}, got {shown(value)}")
    _check_net(config)
    if config.loss not in (None, "cross_entropy"):
        for field in ("class_weights", "ignore_label"):
            if getattr(config, field) is not None:
                raise ConfigError(
                    f"{option(field)} applies to --loss cross_entropy only (got --loss "
                    f"{config.loss})"
                )
    if config.adopt and config.pretrained is None:
        raise ConfigError("--adopt: expected a trained network by --pretrained FILE, got none")
    if len(set(config.seeds)) != len(config.seeds):
        raise ConfigError(f"--seeds: expected different seeds, got {shown(config.seeds)}")
    _check_device(config.device)


def _check_net(config: Config) -> None:
    if config.net != "mlp":
        for field in ("width", "depth"):
            if getattr(config, field) is not None:
                raise ConfigError(
                    f"{option(field)} applies to --net mlp only (got --net {config.net}); scale "
                    f"{config.net} by --net-scale"
                )
        return
    if config.width is None or config.depth is None:
        raise ConfigError("--net: mlp needs --width and --depth, got none; give both")
    layers = config.depth + 1
    for field, points in (
        ("l1", [config.l1]),
        ("grid_l1", config.grid_l1),
        ("fine_tune_l1", [config.fine_tune_l1]),
    ):
        for point in points:
            if point and len(point) not in (1, layers):
                raise ConfigError(
                    f"{option(field)}: expected one number, or one per layer ({layers}), got "
                    f"{len(point)} ({shown(point)})"
                )


def differences(old: Config, new: Config) -> list[str]:
    """Settings in which two configurations differ, as "--lr 0.001 (was 0.002)"."""
    return [
        f"{option(field.name)} {shown(getattr(new, field.name))} (was "
        f"{shown(getattr(old, field.name))})"
        for field in dataclasses.fields(Config)
        if getattr(old, field.name) != getattr(new, field.name)
    ]


def option(field: str) -> str:
    """The command-line option that sets a field."""
    if field in ("grid_l1", "grid_lr"):
        return "--grid " + field.removeprefix("grid_")
    if field == "options":
        return "--set"
    return field if field == "stream" else "--" + field.replace("_", "-")


def _check_device(name: Any) -> None:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(f"--device: expected cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(
                f"--device: expected one of the {count} GPUs that torch {torch.__version__} sees, "
                f"got {name!r}; take cpu"
            )
    elif device.type != "cpu":
        raise ConfigError(f"--device: expected cpu, cuda or cuda:N, got {name!r}")


def shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(shown(v) for v in value) or "none"
    return f"{value:g}" if type(value) is float else str(value)


def _one_or_list(numbers: tuple[Any, ...]) -> Any:
    return numbers[0] if len(numbers) == 1 else list(numbers)


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
