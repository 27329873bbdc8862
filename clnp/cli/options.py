"""The options of an experiment: one row each, from which the parser, its help and the checks of a
run's settings come. Nothing but data.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..learner.budget import AUTO
from ..learner.settings import FineTune, Row, Settings, rows
from ..models.networks import INITS
from ..objectives.losses import LOSSES
from ..objectives.metrics import METRICS
from ..objectives.names import canonical
from ..parallel import EXECUTORS
from ..ranges import Range, choice, flag, number, whole
from .defaults import SPLITS


def numbers(text: str) -> tuple[float, ...]:
    """ "1e-5,1e-6" -> (1e-5, 1e-6)."""
    return tuple(float(part) for part in text.split(","))


def whole_numbers(text: str) -> tuple[int, ...]:
    """ "40,400" -> (40, 400)."""
    return tuple(int(part) for part in text.split(","))


def channel_limits(text: str) -> tuple[int | str, ...]:
    """ "auto" -> ("auto",); "none" -> (); "40,400" -> (40, 400)."""
    named: dict[str, tuple[int | str, ...]] = {AUTO: (AUTO,), "none": ()}
    return named[text] if text in named else whole_numbers(text)


def tuned_epochs(text: str) -> int | str:
    """ "auto" -> "auto"; "10" -> 10."""
    return AUTO if text == AUTO else int(text)


def class_weights(text: str) -> str | tuple[float, ...]:
    """ "balanced" -> "balanced"; "1,2.5" -> (1.0, 2.5)."""
    return text if text == "balanced" else numbers(text)


@dataclass(frozen=True)
class Option:
    """An option of `clnp run` and `compare`.

    Attributes:
        help: one line.
        values: accepted by the setting of that name; None for an option that is no setting.
        many: the setting is a tuple of such values, and of at least so many; None for one value.
        unset: the meaning of None or () as the setting; "" where it may be neither.
        words: further arguments of `add_argument`, before those that follow from `values`.
    """

    help: str
    values: Range | None = None
    many: int | None = None
    unset: str = ""
    words: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of `add_argument`, without the help."""
        kind = self.values.kind if self.values else None
        if kind is bool:
            return {"action": argparse.BooleanOptionalAction}
        if self.many is not None:
            several = (whole_numbers, "N[,N...]") if kind is int else (numbers, "A[,A...]")
            return {**dict(zip(("type", "metavar"), several, strict=True)), **self.words}
        if self.values and self.values.names:
            return {"choices": self.values.names, **self.words}
        if kind in (int, float):
            return {"type": kind, "metavar": "N" if kind is int else "X", **self.words}
        return dict(self.words)

    def holds(self, value: Any) -> bool:
        """Returns whether the setting accepts a value."""
        assert self.values is not None
        if value is None:
            return bool(self.unset) and self.many is None and self.values.kind is not None
        if self.many is None:
            return self.values.holds(value)
        several = isinstance(value, tuple) and len(value) >= self.many
        return several and all(map(self.values.holds, value))

    @property
    def expected(self) -> str:
        """The accepted values, for errors."""
        assert self.values is not None
        return self.values.expected if self.many is None else f"a list, each {self.values.expected}"


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_range(value: Any) -> bool:
    known = isinstance(value, tuple) and all(map(number(-math.inf).holds, value))
    return known and (not value or (len(value) == 2 and value[0] < value[1]))


def _are_weights(value: Any) -> bool:
    several = isinstance(value, tuple) and bool(value)
    return value == "balanced" or (several and all(map(number(above=True).holds, value)))


def _of(
    row: Row, values: Range | None = None, many: int | None = None, unset: str = "", **words: Any
) -> Option:
    """The option of a learner's setting; `values` where a command line can give fewer."""
    return Option(row.meaning, values or row.values, many, unset, words)


def _metric_name(text: str) -> str:
    """ "mean-iou" -> "mean IoU"."""
    names = {canonical(name): name for name in METRICS}
    return names.get(canonical(text), text)


LEARNER, TUNING = rows(Settings), rows(FineTune)
L1, CHANNELS = number(), whole(1, 10_000_000)
LIMIT = Range(f"auto or {CHANNELS.expected}", lambda v: v == AUTO or CHANNELS.holds(v), int)
TUNED = Range("auto or an integer >= 0", lambda v: v == AUTO or whole(0).holds(v), int)
LIMITS = {"type": channel_limits, "metavar": "auto|none|N[,N...]"}
# Where things are, and which seeds: no settings of `Config`.
PLACES: dict[str, dict[str, Option]] = {
    "folder": {
        "out": Option(
            "run folder (default: runs/EXPERIMENT)", words={"type": Path, "metavar": "DIR"}
        ),
        "resume": Option(
            "go on with the run in --out, its settings", words={"action": "store_true"}
        ),
        "overwrite": Option("delete the run in --out first", words={"action": "store_true"}),
        "data-root": Option(
            "folder with MNIST's idx files, or with CIFAR in any of its forms; without it they are "
            "downloaded",
            words={"metavar": "DIR"},
        ),
        "pretrained": Option(
            "weights to begin with: .safetensors, or a state dict saved by torch.save",
            words={"metavar": "FILE"},
        ),
        "image-threads": Option(
            "threads that read image files (default: 2)", words={"type": int, "metavar": "N"}
        ),
    },
    "GPU": {
        "tune": Option(
            "measure the kernels on the GPU first, as clnp tune does",
            words={"action": "store_true"},
        )
    },
    "several at a time": {
        "workers": Option(
            "processes (default: 1), for seeds and compared methods, or else for the grid points "
            "of a task",
            words={"type": int, "metavar": "N"},
        ),
        "executor": Option(
            "the workers are processes of this machine (default) or tasks on Ray",
            words={"choices": EXECUTORS},
        ),
    },
    "seeds": {
        "seed": Option("one seed (default: 0)", words={"type": int, "metavar": "S"}),
        "seeds": Option(
            "one number: seeds 0 to N-1; several: these seeds. Each has its own sub-folder",
            words={"type": int, "nargs": "+", "metavar": "N"},
        ),
    },
}
OPTIONS: dict[str, dict[str, Option]] = {
    "data": {
        "tasks": Option("tasks of the stream", whole(1, 1000), words={"metavar": "T"}),
        "split": Option(
            "split-cifar: CIFAR-10 then CIFAR-100 in parts, or one of them in parts",
            choice(SPLITS),
            unset="cifar10-100",
        ),
        "classes-per-task": Option("split-cifar: classes of a task", whole(1, 100), unset="10"),
        "validation": Option(
            "training examples set aside for validation, a fraction, or (MNIST) a number",
            number(0, 1_000_000, above=True),
            unset="the data's own",
        ),
        "examples": Option(
            "training examples of each task, drawn at random", whole(1, 1_000_000_000), unset="all"
        ),
        "identity-first": Option("permuted: the first task keeps its pixels' order", flag()),
        "normalise": Option(
            "scale images by stated constants, by the task's training images, or not",
            choice(("constants", "train", "none")),
        ),
        "augment": Option("random crops and mirror images while training", flag()),
        "image-size": Option(
            "folder: side to which images are scaled; needed unless all are squares of one size",
            whole(1, 4096),
            unset="that of the images",
        ),
        "convert-images": Option(
            "folder: take images that are transparent, of inks, or of more than 8 bits", flag()
        ),
        "image-range": Option(
            "folder: range of images of more than 8 bits",
            Range("two numbers, black and white, the first below the second", _is_range),
            unset="as measured",
            words={"type": numbers, "metavar": "BLACK,WHITE"},
        ),
    },
    "training": {
        "epochs": _of(LEARNER["epochs"]),
        "batch-size": _of(LEARNER["batch_size"], metavar="B"),
        "lr": _of(LEARNER["lr"]),
        "l1": _of(LEARNER["l1"], L1, 1),
        "schedule": _of(LEARNER["schedule"]),
        "loss": Option(
            "loss, which says what the labels of arrays are: classes, 0 and 1 (bce), or numbers",
            choice(LOSSES),
            unset="cross_entropy",
            words={"type": lambda text: text.replace("-", "_")},
        ),
        "class-weights": Option(
            "cross_entropy: weights of the classes, or balanced, from the training split",
            Range("balanced or a list of numbers > 0", _are_weights, str),
            unset="all alike",
            words={"type": class_weights, "metavar": "balanced|A[,A...]"},
        ),
        "ignore-label": Option(
            "cross_entropy: label of places that don't count, as in masks of pixels",
            whole(-(2**31), 2**31),
            unset="none",
        ),
        "metric": Option(
            "metric in reports and of the margin",
            choice(METRICS),
            unset="that of the loss",
            words={"type": _metric_name},
        ),
        "dtype": _of(LEARNER["dtype"]),
        "device": Option("cpu (default), cuda or cuda:N", words={"metavar": "D"}),
        "threads": Option(
            "CPU threads, of each worker; another number can change the last bits", whole(1, 4096)
        ),
        "set": Option(
            "options of the method, as clnp methods lists them; for one of several methods "
            "METHOD.NAME=VALUE",
            words={"action": "extend", "nargs": "+", "metavar": "NAME=VALUE"},
        ),
    },
    "network": {
        "net model": Option(
            "mlp, narrow, wide, resnet18_small, one of torchvision's, or FILE.py:NAME, a class or "
            "function of your own",
            Range("the name of a network", is_text, str),
            words={"metavar": "NAME"},
        ),
        "net-scale": Option(
            "factor on the channels of our own networks", number(0, 64, above=True), unset="1"
        ),
        "width": Option(
            "mlp: channels of each hidden layer", whole(1, 1_000_000), unset="the network's own"
        ),
        "depth": Option("mlp: hidden layers", whole(1, 100), unset="the network's own"),
        "dropout": Option(
            "probability of dropout",
            number(0, 1, below=True),
            unset="the network's own",
            words={"metavar": "P"},
        ),
        "init": Option(
            "mlp: distribution of the first layer's weights", choice(INITS), unset="default"
        ),
        "head": _of(LEARNER["head"]),
        "adopt": Option("the --pretrained network is the first task, untrained", flag()),
    },
    "pruning": {
        "margin": _of(LEARNER["margin"], number(), metavar="M"),
        "search": _of(LEARNER["search"]),
        "sparsifier": _of(LEARNER["sparsifier"]),
        "tasks-expected": _of(LEARNER["tasks_expected"], whole(1), unset="those of the run"),
        "growth": _of(LEARNER["growth"], LIMIT, 0, "no limit", **LIMITS),
        "first-growth": _of(LEARNER["first_growth"], LIMIT, 0, "no limit", **LIMITS),
        "grid": Option(
            "graceful forgetting over a grid: l1=1e-6,1e-5 lr=1e-3,2e-3; per layer with colons, "
            "l1=1e-5:1e-5:1e-6",
            words={"action": "extend", "nargs": "+", "metavar": "NAME=LIST"},
        ),
        "grid-first-only": _of(LEARNER["grid_first_only"]),
        "granularity": _of(LEARNER["granularity"], whole(1), unset="8 on a GPU, else 1"),
        "fine-tune-epochs": _of(LEARNER["fine_tune"], TUNED, type=tuned_epochs, metavar="auto|N"),
        "fine-tune-lr": _of(TUNING["lr"], number(above=True), unset="that of training"),
        "fine-tune-l1": _of(TUNING["l1"], L1, 0, "that of training"),
        "fine-tune-schedule": _of(TUNING["schedule"]),
        "fine-tune-rounds": _of(TUNING["rounds"]),
    },
}
# Setting of `Config` -> its option, without those that are no settings.
SETTINGS: dict[str, Option] = {
    name.split()[0].replace("-", "_"): option
    for group in OPTIONS.values()
    for name, option in group.items()
    if option.values is not None
}
# What is refused for other methods than CLNP.
PRUNING = tuple(name.replace("-", "_") for name in OPTIONS["pruning"])
NO_METHOD = ("l1", "adopt", "grid_l1", "grid_lr", *PRUNING)
CLNP_ONLY = NO_METHOD
