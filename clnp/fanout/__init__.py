"""Many trials side by side, in local processes or on Ray: grid points, seeds, methods."""

from clnp.fanout.trial import tell
from clnp.fanout.workers import EXECUTORS, Workers, fan_out

__all__ = ["EXECUTORS", "Workers", "fan_out", "tell"]
