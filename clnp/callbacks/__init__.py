"""Events of a learner, and loggers to CSV files and TensorBoard."""

from .callback import EVENTS, Callback, check_callbacks, notify
from .csv_logger import CSVLogger
from .progress_bar import ProgressBar
from .tensorboard import TensorBoardLogger

__all__ = [
    "EVENTS",
    "CSVLogger",
    "Callback",
    "ProgressBar",
    "TensorBoardLogger",
    "check_callbacks",
    "notify",
]
