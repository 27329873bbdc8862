"""Continual Learning via Neural Pruning (CLNP): networks that learn task after task and never
forget a bit.

Golkar, Kagan, Cho: "Continual Learning via Neural Pruning", 2019.
"""

from clnp_kernels import __version__

from . import data, models
from .deploy.exporting import export
from .deploy.extraction import Footprint, extract, footprint
from .deploy.network_file import load_network
from .errors import (
    CapacityError,
    CapacityWarning,
    CertificateError,
    ChanceWarning,
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
from .learner.learner import Learner
from .learner.own_loop import begin_task, consolidate, parameter_groups, prune
from .learner.report import TaskReport
from .learner.settings import FineTune, Settings
from .network.calibration import calibrated
from .network.certificate import Certificate
from .network.conversion import convert
from .network.model import Model
from .parallel import Workers, fan_out

__all__ = [
    "CapacityError",
    "CapacityWarning",
    "Certificate",
    "CertificateError",
    "ChanceWarning",
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
    "calibrated",
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
