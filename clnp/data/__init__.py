"""Tasks and streams of tasks.

A stream is any sequence of `Task`s: one of the classes here, or a plain list.
"""

from clnp.data.files import ArrayFiles
from clnp.data.folder import Folders, folder_task
from clnp.data.images import Images, ImageSet
from clnp.data.split_cifar import CIFAR10Then100, Part, SplitCIFAR, SplitCIFAR10, SplitCIFAR100
from clnp.data.streams import (
    Arrays,
    Limited,
    Permuted,
    PermutedDigits,
    PermutedMNIST,
    Stream,
    cache_folder,
)
from clnp.data.task import Task

__all__ = [
    "ArrayFiles",
    "Arrays",
    "CIFAR10Then100",
    "Folders",
    "ImageSet",
    "Images",
    "Limited",
    "Part",
    "Permuted",
    "PermutedDigits",
    "PermutedMNIST",
    "SplitCIFAR",
    "SplitCIFAR10",
    "SplitCIFAR100",
    "Stream",
    "Task",
    "cache_folder",
    "folder_task",
]
