"""Continual Learning via Neural Pruning (CLNP): networks that learn task after task and never
forget a bit.

Golkar, Kagan, Cho: "Continual Learning via Neural Pruning", 2019.
"""

from clnp import data, models
from clnp.certificate import Certificate
from clnp.convert import convert
from clnp.errors import (
    CapacityError,
    CapacityWarning,
    CheckpointError,
    ClnpError,
    ConfigError,
    ConvertError,
    DataError,
    DataWarning,
    ExportError,
    MarginWarning,
    SaveError,
    TrainingError,
    TrialError,
)
from clnp.export import export
from clnp.extract import Footprint, extract, footprint
from clnp.fanout import Workers, fan_out
from clnp.learner import Learner
from clnp.model import Model
from clnp.network_file import load_network
from clnp.own_loop import begin_task, consolidate, parameter_groups, prune
from clnp.settings import FineTune, Settings
from clnp.task_report import TaskReport
from clnp_kernels import __version__

__all__ = [
    "CapacityError",
    "CapacityWarning",
    "Certificate",
    "CheckpointError",
    "ClnpError",
    "ConfigError",
    "ConvertError",
    "DataError",
    "DataWarning",
    "ExportError",
    "FineTune",
    "Footprint",
    "Learner",
    "MarginWarning",
    "Model",
    "SaveError",
    "Settings",
    "TaskReport",
    "TrainingError",
    "TrialError",
    "Workers",
    "__version__",
    "begin_task",
    "consolidate",
    "convert",
    "data",
    "export",
    "extract",
    "fan_out",
    "footprint",
    "load_network",
    "models",
    "parameter_groups",
    "prune",
]
