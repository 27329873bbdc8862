"""From the settings of a run to its stream of tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from ..data import (
    ArrayFiles,
    CIFAR10Then100,
    Folders,
    Limited,
    PermutedDigits,
    PermutedMNIST,
    SplitCIFAR10,
    SplitCIFAR100,
    Stream,
    SuperclassCIFAR100,
)
from ..data.pictures import Range
from ..errors import ConfigError
from .config import Config
from .run_folder import Places

CIFAR: dict[str, Callable[..., Stream]] = {
    "cifar10-100": CIFAR10Then100,
    "cifar10": SplitCIFAR10,
    "cifar100": SplitCIFAR100,
    "cifar100-superclass": SuperclassCIFAR100,
}


def permuted_digits(config: Config, places: Places) -> Stream:
    """Digits that the package brings along."""
    return PermutedDigits(config.tasks, config.seeds[0], identity_first=config.identity_first)


def permuted_mnist(config: Config, places: Places) -> Stream:
    """MNIST from idx files. A validation below 1 is a fraction of its 60,000 training images."""
    share = config.validation
    options: dict[str, Any] = {"identity_first": config.identity_first}
    if share is not None:
        options["validation"] = round(60_000 * share) if share < 1 else round(share)
    return PermutedMNIST(places.data_root, config.tasks, config.seeds[0], **options)


def split_cifar(config: Config, places: Places) -> Stream:
    """One of the streams of CIFAR."""
    options = {"classes_per_task": config.classes_per_task} if config.classes_per_task else {}
    stream = CIFAR[config.split or "cifar10-100"]
    if options and stream is SuperclassCIFAR100:
        raise ConfigError(
            "--classes-per-task: expected none with --split cifar100-superclass, whose tasks have "
            f"five classes each, got {config.classes_per_task}"
        )
    return stream(places.data_root, config.tasks, **_images(config), **options)


def folder(config: Config, places: Places) -> Stream:
    """Folders of images, one per task."""
    return Folders(
        _named(places, "folders of images"),
        image_size=config.image_size,
        convert=config.convert_images,
        value_range=cast(Range, config.image_range) or None,
        workers=places.image_threads,
        **_images(config),
    )


def arrays(config: Config, places: Places) -> Stream:
    """Array files or tables, one per task."""
    options = {
        **_images(config),
        "validation": config.validation or 0.1,
        "loss": config.loss_setting,
    }
    return ArrayFiles(_named(places, ".npz files, folders of .npy files or .csv tables"), **options)


MAKERS: dict[str, Callable[[Config, Places], Stream]] = {
    "permuted-digits": permuted_digits,
    "permuted-mnist": permuted_mnist,
    "split-cifar": split_cifar,
    "folder": folder,
    "arrays": arrays,
}


def _images(config: Config) -> dict[str, Any]:
    names = ("validation", "normalise", "augment")
    return {"seed": config.seeds[0], **{name: getattr(config, name) for name in names}}


def _named(places: Places, what: str) -> tuple[str, ...]:
    if not places.paths:
        raise ConfigError(f"EXPERIMENT: expected {what} after it, one per task, got none")
    return places.paths


def make_stream(config: Config, places: Places) -> Stream:
    """The stream of tasks of a configuration with one seed. Raises DataError where its data isn't
    found.
    """
    stream = MAKERS[config.stream](config, places)
    if config.examples is None:
        return stream
    return Limited(stream, config.examples, config.seeds[0])
