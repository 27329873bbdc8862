"""From the settings of a run to its stream, network and learner, with all checks.

Complaints come before anything is downloaded, trained or written, in this order: settings, paths,
packages, then the names and headers of the data files, the network, and at last the content of
all files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import methods, models
from ..data import Folders, Limited, Stream, Task
from ..data.check import check_tasks
from ..data.pictures import pillow
from ..errors import ConfigError
from ..learner.learner import Learner
from ..learner.settings import Settings
from ..models.resolve import check_name, check_options, read_weights
from ..network.conversion import convert
from ..parallel import Workers
from ..parallel.ranks import world
from . import torchrun
from .config import Config
from .run_folder import Places, Run, RunFolder
from .streams import make_stream


def try_out(run: Run, *, contents: bool = True) -> tuple[Run, Stream]:
    """Finds the data, builds the network and its learner, and forgets them, so that complaints come
    before anything is deleted or written.

    Arguments:
        run: of one seed or several.
        contents: read all data, too; False where that was done.

    Returns:
        the run with the settings found out from the data, and the stream of the first seed.

    Raises:
        ClnpError: whatever doesn't fit.
    """
    first = run.config.for_seed(run.config.seeds[0])
    _check_settings(first, run.places)
    stream = make_stream(first, run.places)
    config = _found_out(run.config, stream)
    first = config.for_seed(config.seeds[0])
    _check_shapes(first, stream)
    _make_learner(first, run.places, stream)
    if contents:
        check_tasks(_one_of_each(first, stream))
    return dataclasses.replace(run, config=config), stream


def load_or_make(run: Run, stream: Stream) -> Any:
    """The learner of a run of one seed, as its checkpoint has it or fresh; it writes checkpoint and
    progress into the run's folder.

    Raises:
        CheckpointError: the checkpoint is damaged. ConfigError: it holds too many tasks.
    """
    config, places, path = run.config, run.places, run.folder.checkpoint
    joined = torchrun.are_joined()
    if not (world().from_first(path.is_file()) if joined else path.is_file()):
        return _make_learner(config, places, stream, run.folder, joined)
    device = torchrun.device_of(config)
    arguments: dict[str, Any] = {"device": device, "checkpoint_dir": run.folder.path}
    arguments["progress_bar"] = False  # the console has its own
    if config.method == "clnp":
        workers = _workers(config, places)
        learner: Any = Learner.load(
            path, tasks=stream, workers=workers, distributed=joined, **arguments
        )
    else:
        net, _ = _make_net(config, places, stream)
        learner = methods.load(path, tasks=stream, net=net, **arguments)
    if len(learner.reports) > len(stream):
        raise ConfigError(
            f"{path}: expected at most {len(stream)} tasks, got {len(learner.reports)}; is it of "
            "this run?"
        )
    return learner


def folders_of(stream: Sequence[Task]) -> Folders | None:
    """The folders of images of a stream, if it is one of these."""
    base = stream.stream if isinstance(stream, Limited) else stream
    return base if isinstance(base, Folders) else None


def _make_net(config: Config, places: Places, stream: Stream) -> tuple[nn.Module, torch.Tensor]:
    """(dense network for the stream's first task, an example batch). Raises ConfigError."""
    first = stream[0]
    shape, outputs = first.sample_shape, first.num_outputs
    net = models.make(config.net, outputs, shape, seed=config.seeds[0], **config.net_arguments())
    if places.pretrained is not None:
        models.load_weights(net, places.pretrained, head=config.adopt)
    return net, torch.zeros(2, *shape)


def _make_learner(
    config: Config,
    places: Places,
    stream: Stream,
    folder: RunFolder | None = None,
    distributed: bool = False,
) -> Any:
    """A fresh network and its learner, which writes checkpoint and progress into `folder`."""
    path = None if folder is None else folder.path
    net, example = _make_net(config, places, stream)
    if config.method != "clnp":
        arguments = {**config.method_arguments(), "checkpoint_dir": path}
        return methods.make(config.method, net, example, progress_bar=False, **arguments)
    model = convert(net, example, verbose=False)
    arguments = {**config.learner_arguments(), "device": torchrun.device_of(config)}
    return Learner(
        model,
        checkpoint_dir=path,
        workers=_workers(config, places),
        distributed=distributed,
        progress_bar=False,  # the console has its own
        **arguments,
    )


def _workers(config: Config, places: Places) -> Workers:
    return Workers(places.workers, executor=places.executor, threads=config.threads)


def _check_settings(config: Config, places: Places) -> None:
    """Checks the settings of one seed without data; `build_config` checked the methods' own."""
    if config.method == "clnp":
        arguments = config.learner_arguments()
        arguments.pop("device")
        Settings(**arguments)
    options = dict(config.options)
    expected = options.get("tasks", config.tasks)
    if expected < config.tasks and not options.get("keep"):
        raise ConfigError(
            f"--set tasks: {config.method} divides its weights among so many tasks, expected "
            f"{config.tasks} or more, as the run has, got {expected}; leave it out"
        )
    Workers(places.workers, executor=places.executor, threads=config.threads).close()
    if places.pretrained is not None:
        read_weights(Path(places.pretrained))
    if config.stream == "folder":
        pillow()
    check_name(config.net)
    check_options(config.net, config.net_arguments())


def _found_out(config: Config, stream: Stream) -> Config:
    """The settings with what was left to the data: size and range of images. A resumed run takes
    these. Raises DataError where the images differ.
    """
    base = folders_of(stream)
    if base is None:
        return config
    return dataclasses.replace(
        config, image_size=base.image_size, image_range=base.value_range or ()
    )


def _check_shapes(config: Config, stream: Stream) -> None:
    """Makes the tasks; where they share the outputs, compares their numbers of classes."""
    tasks = [(task.name, task.num_outputs) for task in _one_of_each(config, stream)]
    if config.head == "single" and len({classes for _, classes in tasks}) > 1:
        counts = ", ".join(f"{name} {classes}" for name, classes in tasks[:12])
        raise ConfigError(
            f"--head: single expects as many classes in every task, got {counts}"
            f"{', ...' if len(tasks) > 12 else ''}; take --head multi"
        )


def _one_of_each(config: Config, stream: Stream) -> Sequence[Task]:
    """The tasks that differ in more than the order of their pixels."""
    return [stream[0]] if config.stream.startswith("permuted") else stream
