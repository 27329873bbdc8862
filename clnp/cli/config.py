"""The settings of a command-line run: defaults per stream, and one table of checks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError
from ..learner.settings import DTYPES, SEARCHES, SPARSIFIERS, without_removed
from ..models.networks import INITS
from ..network.heads import HEADS
from ..training.fit import SCHEDULES
from ..training.score import SCORES
from .defaults import DEFAULTS, SPLITS

Numbers = tuple[float, ...]
# What `clnp.Learner` and `clnp.methods.make` take alike.
SHARED = ("head", "lr", "epochs", "batch_size", "schedule", "dtype", "device")


@dataclass(frozen=True)
class Config:
    """What decides the numbers of a run, and nothing else: no paths, no dates.

    Numbers without a unit are counts or fractions; l1 is the coefficient of the summed absolute
    weights of a layer, one for all layers or one per layer (depth + 1); fine_tune_l1 () takes that
    of training. grid_l1 and grid_lr are the candidates of graceful forgetting, () for none.
    threads is torch's number of CPU threads: another number can change the last bits. width, depth,
    dropout, image_size, classes_per_task and validation are None where the network's or the data's
    own are taken, examples where all are.
    image_size, and image_range (black and white of images of more than 8 bits), are found out when
    a run is begun, where they aren't given. options are (name, value) pairs of the method's own.
    pretrained is the SHA-256 of the file of weights that training starts from. Fields with a
    default came later: the default is what was done before them.

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
    fine_tune_epochs: int
    fine_tune_lr: float
    fine_tune_l1: Numbers
    granularity: int
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
    growth: tuple[int, ...] = ()
    first_growth: tuple[int, ...] = ()
    examples: int | None = None
    init: str | None = None
    image_range: Numbers = ()
    score: str = "accuracy"

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
        odd = sorted((set(values) - known) | (needed - set(values)))
        if odd:
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
            "schedule": self.fine_tune_schedule,
            "rounds": self.fine_tune_rounds,
            "l1": _one_or_list(self.fine_tune_l1) if self.fine_tune_l1 else None,
        }
        own = [
            "margin",
            "score",
            "search",
            "granularity",
            "grid_first_only",
        ]
        # Settings without a sparsifier know none but activity.
        if self.sparsifier != "activity":
            own.append("sparsifier")
        return {
            **{name: getattr(self, name) for name in (*SHARED, *own)},
            "seed": self.seeds[0],
            "l1": _one_or_list(self.l1),
            "growth": _one_or_list(self.growth) if self.growth else None,
            "first_growth": _one_or_list(self.first_growth) if self.first_growth else None,
            "grid": grid or None,
            "fine_tune": fine_tune if self.fine_tune_epochs else None,
        }

    def method_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `clnp.methods.make` for these settings; needs a single seed."""
        shared = {name: getattr(self, name) for name in SHARED}
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


def defaults(stream: str) -> dict[str, Any]:
    """All settings of an experiment. Raises ConfigError for an unknown one."""
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


def _maybe(check: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    return lambda v: v is None or check[0](v), check[1]


def _is_range(value: Any) -> bool:
    low_high = isinstance(value, tuple) and all(type(v) in (int, float) for v in value)
    return low_high and (
        not value or (len(value) == 2 and -math.inf < value[0] < value[1] < math.inf)
    )


FLAG = (lambda v: type(v) is bool, "true or false")
SHARE = (lambda v: _real(0, 1)[0](v) and v < 1, "a number from 0 to below 1")
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
    ("width", _maybe(_whole(1, 1_000_000))),
    ("depth", _maybe(_whole(1, 100))),
    ("dropout", _maybe(SHARE)),
    ("init", _maybe(_one_of(*INITS))),
    ("head", _one_of(*HEADS)),
    ("margin", (lambda v: _real(0, 1)[0](v) and v < 1, "a fraction from 0 to below 1")),
    ("score", _one_of(*SCORES)),
    ("search", _one_of(*SEARCHES)),
    ("grid_l1", _each(_each(L1, least=1))),
    ("grid_lr", _each(LR)),
    ("grid_first_only", FLAG),
    ("fine_tune_epochs", _whole(0, 100_000)),
    ("fine_tune_lr", LR),
    ("fine_tune_l1", _each(L1)),
    ("granularity", _whole(1, 4096)),
    ("dtype", _one_of(*DTYPES)),
    ("threads", _whole(1, 4096)),
    ("net", (lambda v: isinstance(v, str) and bool(v), "the name of a network")),
    ("net_scale", _maybe(_real(0, 64, above=True))),
    ("pretrained", _maybe((lambda v: isinstance(v, str), "a file of weights"))),
    ("adopt", FLAG),
    ("method", (lambda v: isinstance(v, str) and bool(v), "the name of a method")),
    ("options", (lambda v: all(len(pair) == 2 for pair in v), "NAME=VALUE pairs")),
    ("sparsifier", _one_of(*SPARSIFIERS)),
    ("fine_tune_schedule", _one_of(*SCHEDULES)),
    ("fine_tune_rounds", _whole(1, 1000)),
    ("growth", _each(_whole(1, 10_000_000))),
    ("first_growth", _each(_whole(1, 10_000_000))),
    ("split", _maybe(_one_of(*SPLITS))),
    ("classes_per_task", _maybe(_whole(1, 100))),
    ("validation", _maybe(_real(0, 1_000_000, above=True))),
    ("examples", _maybe(_whole(1, 1_000_000_000))),
    ("identity_first", FLAG),
    ("normalise", _one_of("constants", "train", "none")),
    ("augment", FLAG),
    ("image_size", _maybe(_whole(1, 4096))),
    ("convert_images", FLAG),
    ("image_range", (_is_range, "two numbers, black and white, the first below the second")),
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
    _check_net(config)
    if config.adopt and config.pretrained is None:
        raise ConfigError("--adopt: got no weights, wanted a trained network by --pretrained FILE")
    if len(set(config.seeds)) != len(config.seeds):
        raise ConfigError(f"--seeds: got {_shown(config.seeds)}, wanted different seeds")
    _check_device(config.device)


def _check_net(config: Config) -> None:
    """What goes with the network: widths of an MLP only, L1 per layer where layers are known."""
    if config.net != "mlp":
        for field in ("width", "depth"):
            if getattr(config, field) is not None:
                raise ConfigError(
                    f"{option(field)}: is of the network mlp; {config.net} is scaled by --net-scale"
                )
        return
    if config.width is None or config.depth is None:
        raise ConfigError("--net: the network mlp needs --width and --depth")
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
    if field == "options":
        return "--set"
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


def _one_or_list(numbers: tuple[Any, ...]) -> Any:
    return numbers[0] if len(numbers) == 1 else list(numbers)


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
