"""Networks of the paper, a ResNet for small images, and torchvision's by name.

All are plain torch modules, to be converted by `clnp.convert`.
"""

from .networks import mlp, narrow, resnet18_small, wide
from .resolve import NETWORKS, load_weights, make, names

__all__ = ["NETWORKS", "load_weights", "make", "mlp", "names", "narrow", "resnet18_small", "wide"]
