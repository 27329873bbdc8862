"""Independent trials (grid points, seeds, methods) in local processes or on Ray."""

from .trial import tell
from .workers import EXECUTORS, Workers, fan_out

__all__ = ["EXECUTORS", "Workers", "fan_out", "tell"]
