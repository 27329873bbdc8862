"""Tasks and streams of tasks. A stream is any sequence of `Task`s, also a plain list."""

from .files import ArrayFiles
from .folder import Folders, folder_task
from .images import Images, ImageSet
from .split_cifar import (
    CIFAR10Then100,
    Part,
    SplitCIFAR,
    SplitCIFAR10,
    SplitCIFAR100,
    SuperclassCIFAR100,
)
from .streams import Arrays, Limited, Permuted, PermutedDigits, PermutedMNIST, Stream, cache_folder
from .task import Task

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
    "SuperclassCIFAR100",
    "Task",
    "cache_folder",
    "folder_task",
]
