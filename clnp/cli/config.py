"""The settings of a command-line run: defaults per stream, and one table of checks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from clnp.errors import ConfigError
from clnp.heads import HEADS
from clnp.settings import DTYPES, SEARCHES
from clnp.train import SCHEDULES

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Config:
    """What decides the numbers of a run, and nothing else: no paths, no dates.

    Numbers without a unit are counts or fractions; l1 is the coefficient of the summed absolute
    weights of a layer, one for all layers or one per layer (depth + 1); fine_tune_l1 () takes that
    of training. grid_l1 and grid_lr are the candidates of graceful forgetting, () for none.
    threads is torch's number of CPU threads: another number can change the last bits.

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
    width: int
    depth: int
    dropout: float
    head: str
    margin: float
    search: str
    grid_l1: tuple[Numbers, ...]
    grid_lr: Numbers
    grid_first_only: bool
    fine_tune_epochs: int
    fine_tune_lr: float
    fine_tune_l1: Numbers
    reinit_scale: float
    granularity: int
    dtype: str
    device: str
    threads: int

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON has them: lists for tuples."""
        return {
            name: [list(v) if isinstance(v, tuple) else v for v in value]
            if isinstance(value, tuple)
            else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The reverse of `as_dict`, validated.

        Raises:
            ConfigError: a setting is missing, unknown or nonsense.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            odd = sorted(set(values) ^ names)
            raise ConfigError(
                f"configuration: settings {', '.join(odd)} are missing or unknown to this version"
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
        fine_tune = {
            "epochs": self.fine_tune_epochs,
            "lr": self.fine_tune_lr,
            "l1": _one_or_list(self.fine_tune_l1) if self.fine_tune_l1 else None,
        }
        same = (
            "head",
            "margin",
            "lr",
            "epochs",
            "batch_size",
            "device",
            "search",
            "schedule",
            "dtype",
            "reinit_scale",
            "granularity",
            "grid_first_only",
        )
        return {
            **{
                name: getattr(self, name)
                for name in (*same, "reinit_scale", "granularity", "grid_first_only")
            },
            "seed": self.seeds[0],
            "l1": _one_or_list(self.l1),
            "grid": grid or None,
            "fine_tune": fine_tune if self.fine_tune_epochs else None,
        }


COMMON: dict[str, Any] = {
    "seeds": (0,),
    "depth": 2,
    "dropout": 0.0,
    "head": "single",
    "search": "joint",
    "grid_l1": (),
    "grid_lr": (),
    "grid_first_only": False,
    "fine_tune_epochs": 0,
    "fine_tune_lr": 1e-4,
    "fine_tune_l1": (),
    "reinit_scale": 1.0,
    "granularity": 1,
    "dtype": "fp32",
    "device": "cpu",
}
# What a run takes where the command line says nothing.
DEFAULTS: dict[str, dict[str, Any]] = {
    "permuted-digits": {
        **COMMON,
        "tasks": 5,
        "epochs": 40,
        "batch_size": 32,
        "lr": 2e-3,
        "l1": (5e-4, 5e-4, 3e-4),
        "schedule": "step",
        "width": 600,
        "margin": 0.005,
        # Steps of a millisecond: two threads win little, and lose much where others want the cores.
        "threads": 1,
    },
    # Network, optimizer, learning rate and batch as in Golkar et al. 2019, Sec. 3.1. There alpha is
    # 1e-7, 1e-5, 1e-6, the margin 0.0005, and nothing is fine-tuned: here that takes more channels
    # per task. A wider margin and fine-tuning of the survivors reach the same accuracy with fewer.
    "permuted-mnist": {
        **COMMON,
        "tasks": 10,
        "epochs": 15,
        "batch_size": 256,
        "lr": 2e-3,
        "l1": (3e-5, 1e-5, 1e-6),
        "schedule": "step",
        "width": 2000,
        "dropout": 0.25,
        "margin": 0.01,
        "fine_tune_epochs": 10,
        "fine_tune_lr": 5e-4,
    },
}


def defaults(stream: str) -> dict[str, Any]:
    """All settings of a stream. Raises ConfigError for an unknown one."""
    if stream not in DEFAULTS:
        raise ConfigError(f"stream: got {stream!r}, wanted one of {', '.join(DEFAULTS)}")
    return {"stream": stream, "threads": torch.get_num_threads(), **DEFAULTS[stream]}


def _whole(low: int, high: int) -> tuple[Callable[[Any], bool], str]:
    return lambda v: type(v) is int and low <= v <= high, f"a whole number from {low} to {high}"


def _real(low: float, high: float, *, above: bool = False) -> tuple[Callable[[Any], bool], str]:
    def ok(value: Any) -> bool:
        number = type(value) in (int, float) and math.isfinite(value)
        return bool(number and (low < value if above else low <= value) and value <= high)

    return ok, f"a number {'above' if above else 'from'} {low:g} and up to {high:g}"


def _one_of(*names: str) -> tuple[Callable[[Any], bool], str]:
    return lambda v: v in names, "one of " + ", ".join(names)


def _each(
    check: tuple[Callable[[Any], bool], str], least: int = 0
) -> tuple[Callable[[Any], bool], str]:
    return (
        lambda v: isinstance(v, tuple) and len(v) >= least and all(map(check[0], v)),
        f"each {check[1]}",
    )


L1 = _real(0, 1)
LR = _real(0, 10, above=True)
# Field, test, what was wanted. Order is the order of the complaints.
CHECKS: tuple[tuple[str, tuple[Callable[[Any], bool], str]], ...] = (
    ("stream", _one_of(*DEFAULTS)),
    ("tasks", _whole(1, 1000)),
    ("seeds", _each(_whole(0, 2**31 - 1), least=1)),
    ("epochs", _whole(1, 100_000)),
    ("batch_size", _whole(1, 1_000_000)),
    ("lr", LR),
    ("l1", _each(L1, least=1)),
    ("schedule", _one_of(*SCHEDULES)),
    ("width", _whole(1, 1_000_000)),
    ("depth", _whole(1, 100)),
    ("dropout", (lambda v: _real(0, 1)[0](v) and v < 1, "a number from 0 to below 1")),
    ("head", _one_of(*HEADS)),
    ("margin", (lambda v: _real(0, 1)[0](v) and v < 1, "a fraction from 0 to below 1")),
    ("search", _one_of(*SEARCHES)),
    ("grid_l1", _each(_each(L1, least=1))),
    ("grid_lr", _each(LR)),
    ("grid_first_only", (lambda v: type(v) is bool, "true or false")),
    ("fine_tune_epochs", _whole(0, 100_000)),
    ("fine_tune_lr", LR),
    ("fine_tune_l1", _each(L1)),
    ("reinit_scale", _real(0, 100, above=True)),
    ("granularity", _whole(1, 4096)),
    ("dtype", _one_of(*DTYPES)),
    ("threads", _whole(1, 4096)),
)


def validate(config: Config) -> None:
    """Checks every setting against the table, then those that depend on each other or on this
    machine.

    Raises:
        ConfigError: the first setting that fails, with what came and what was wanted.
    """
    for field, (test, wanted) in CHECKS:
        value = getattr(config, field)
        if not test(value):
            raise ConfigError(f"{option(field)}: got {_shown(value)}, wanted {wanted}")
    layers = config.depth + 1
    for field, points in (
        ("l1", [config.l1]),
        ("grid_l1", config.grid_l1),
        ("fine_tune_l1", [config.fine_tune_l1]),
    ):
        for point in points:
            if point and len(point) not in (1, layers):
                raise ConfigError(
                    f"{option(field)}: got {len(point)} numbers ({_shown(point)}), wanted one, or "
                    f"one per layer ({layers})"
                )
    if len(set(config.seeds)) != len(config.seeds):
        raise ConfigError(f"--seeds: got {_shown(config.seeds)}, wanted different seeds")
    _check_device(config.device)


def differences(old: Config, new: Config) -> list[str]:
    """Settings in which two configurations differ, as "--lr 0.001 (was 0.002)"."""
    return [
        f"{option(field.name)} {_shown(getattr(new, field.name))} (was "
        f"{_shown(getattr(old, field.name))})"
        for field in dataclasses.fields(Config)
        if getattr(old, field.name) != getattr(new, field.name)
    ]


def option(field: str) -> str:
    """The command-line option that sets a field."""
    if field in ("grid_l1", "grid_lr"):
        return "--grid " + field.removeprefix("grid_")
    return field if field == "stream" else "--" + field.replace("_", "-")


def _check_device(name: Any) -> None:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(f"--device: got {name!r}, wanted cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(
                f"--device: got {name!r}, but torch {torch.__version__} sees {count} GPUs here; "
                "use cpu"
            )
    elif device.type != "cpu":
        raise ConfigError(f"--device: got {name!r}, wanted cpu, cuda or cuda:N")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_shown(v) for v in value) or "none"
    return f"{value:g}" if type(value) is float else str(value)


def _one_or_list(numbers: Numbers) -> float | list[float]:
    return numbers[0] if len(numbers) == 1 else list(numbers)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
