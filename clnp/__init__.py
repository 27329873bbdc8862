"""Continual Learning via Neural Pruning (CLNP): networks that learn task after task and never
forget a bit.

Golkar, Kagan, Cho: "Continual Learning via Neural Pruning", 2019.
"""

from clnp import data, models
from clnp.convert import convert
from clnp.errors import (
    CapacityError,
    CapacityWarning,
    CheckpointError,
    ClnpError,
    ConfigError,
    ConvertError,
    DataError,
    SaveError,
    TrainingError,
)
from clnp.export import export
from clnp.extract import Footprint, extract, footprint
from clnp.learner import Learner
from clnp.model import Model
from clnp.network_file import load_network
from clnp.settings import FineTune, Settings
from clnp.task_report import TaskReport

__all__ = [
    "CapacityError",
    "CapacityWarning",
    "CheckpointError",
    "ClnpError",
    "ConfigError",
    "ConvertError",
    "DataError",
    "FineTune",
    "Footprint",
    "Learner",
    "Model",
    "SaveError",
    "Settings",
    "TaskReport",
    "TrainingError",
    "convert",
    "data",
    "export",
    "extract",
    "footprint",
    "load_network",
    "models",
]
