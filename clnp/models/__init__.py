"""Networks: those of the paper, a ResNet for small images, and any of torchvision's by name.

All are plain torch modules; `clnp.convert` makes masked networks of them.
"""

from .networks import mlp, narrow, resnet18_small, wide
from .resolve import NETWORKS, load_weights, make, names

__all__ = [
    "NETWORKS",
    "load_weights",
    "make",
    "mlp",
    "names",
    "narrow",
    "resnet18_small",
    "wide",
]
