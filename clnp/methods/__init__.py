"""Other methods than CLNP, under the same protocol: baselines, replay, SparCL and EsaCL.

A method is a short file with three verbs (see `clnp.methods.method`); `METHODS` lists them, `make`
gives a learner that is used as `clnp.Learner` is, and `load` one that was saved.
"""

from ..training.cost import clnp_cost, inference_flops, layer_products, training_flops
from .learner import MethodLearner
from .method import Batch, Method
from .registry import METHODS, MethodInfo, load, make
from .settings import MethodSettings

__all__ = [
    "METHODS",
    "Batch",
    "Method",
    "MethodInfo",
    "MethodLearner",
    "MethodSettings",
    "clnp_cost",
    "inference_flops",
    "layer_products",
    "load",
    "make",
    "training_flops",
]
