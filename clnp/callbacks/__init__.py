"""What listens to a learner while it learns: the events, and loggers to files and TensorBoard."""

from clnp.callbacks.callback import EVENTS, Callback, check_callbacks, notify
from clnp.callbacks.csv_logger import CSVLogger
from clnp.callbacks.tensorboard import TensorBoardLogger

__all__ = [
    "EVENTS",
    "CSVLogger",
    "Callback",
    "TensorBoardLogger",
    "check_callbacks",
    "notify",
]
