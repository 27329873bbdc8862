"""All that can be wrong with a run, told before anything is downloaded, trained or written.

In this order: settings, paths, packages, then, of the data, what files there are and what their
headers say, the network, and at last every file's content.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ..data import Folders, Limited, Stream, Task
from ..data.check import check_tasks
from ..data.pictures import pillow
from ..errors import ConfigError
from ..learner.settings import Settings
from ..models.resolve import check_name, check_options, read_weights
from ..parallel import Workers
from .config import Config
from .run_folder import Places


def check_settings(config: Config, places: Places) -> None:
    """Checks the settings of one seed without any data: those of the learner (of other methods
    `chosen.settings` has), workers, network, weights, packages.

    Raises:
        ConfigError, DataError: the first that is wrong, or lacks a package.
    """
    if config.method == "clnp":
        arguments = config.learner_arguments()
        arguments.pop("device")
        Settings(**arguments)
    options = dict(config.options)
    expected = options.get("tasks", config.tasks)
    if expected < config.tasks and not options.get("keep"):
        raise ConfigError(
            f"--set tasks={expected}: {config.method} divides its weights among so many tasks, but "
            f"the run has {config.tasks}; leave it out, or set tasks={config.tasks} or more"
        )
    Workers(places.workers, executor=places.executor, threads=config.threads).close()
    if places.pretrained is not None:
        read_weights(Path(places.pretrained))
    if config.stream == "folder":
        pillow()
    check_name(config.net)
    check_options(config.net, config.net_arguments())


def found_out(config: Config, stream: Stream) -> Config:
    """The settings with what was left to the data: size and range of images. A resumed run takes
    these. Raises DataError where the images differ.
    """
    base = folders_of(stream)
    if base is None:
        return config
    return dataclasses.replace(
        config, image_size=base.image_size, image_range=base.value_range or ()
    )


def folders_of(stream: Sequence[Task]) -> Folders | None:
    """The folders of images of a stream, if it is one of these."""
    base = stream.stream if isinstance(stream, Limited) else stream
    return base if isinstance(base, Folders) else None


def check_shapes(config: Config, stream: Stream) -> None:
    """Makes every task, and compares their numbers of classes where they share the outputs.

    Raises:
        DataError: a task that can't be made. ConfigError: numbers of classes that differ.
    """
    tasks = [(task.name, task.num_classes) for task in one_of_each(config, stream)]
    if config.head == "single" and len({classes for _, classes in tasks}) > 1:
        told = ", ".join(f"{name} {classes}" for name, classes in tasks[:12])
        raise ConfigError(
            f"--head: got single, the same classes for all tasks, but their numbers differ: {told}"
            f"{', ...' if len(tasks) > 12 else ''}; take --head multi"
        )


def check_contents(config: Config, stream: Stream) -> None:
    """Reads every item of every task. Raises DataError for one that is no good."""
    check_tasks(one_of_each(config, stream))


def one_of_each(config: Config, stream: Stream) -> Sequence[Task]:
    """The tasks that differ in more than the order of their pixels."""
    return [stream[0]] if config.stream.startswith("permuted") else stream
