"""Tasks and streams of tasks.

A stream is any sequence of `Task`s: one of the classes here, or a plain list.
"""

from clnp.data.streams import Arrays, Permuted, PermutedDigits, PermutedMNIST, Stream, cache_folder
from clnp.data.task import Task

__all__ = [
    "Arrays",
    "Permuted",
    "PermutedDigits",
    "PermutedMNIST",
    "Stream",
    "Task",
    "cache_folder",
]
