"""Optimizers with a coupled L1 term."""

from .adam_l1 import AdamL1
from .sgd_l1 import SGDL1

__all__ = ["SGDL1", "AdamL1"]
