"""Many trials side by side, in local processes or on Ray: grid points, seeds, methods."""

from .trial import tell
from .workers import EXECUTORS, Workers, fan_out

__all__ = ["EXECUTORS", "Workers", "fan_out", "tell"]
