"""Events of a learner, and loggers to CSV files and TensorBoard."""

from .callback import EVENTS, Callback, check_callbacks, notify
from .csv_logger import CSVLogger
from .tensorboard import TensorBoardLogger

__all__ = [
    "EVENTS",
    "CSVLogger",
    "Callback",
    "TensorBoardLogger",
    "check_callbacks",
    "notify",
]
