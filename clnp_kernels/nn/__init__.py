"""Modules with a frozen part and a free part."""

from ._replaced import retire
from .dropout import Dropout
from .masked_conv2d import MaskedConv2d
from .masked_conv3d import MaskedConv3d
from .masked_embedding import MaskedEmbedding
from .masked_grouped_conv2d import MaskedGroupedConv2d
from .masked_linear import MaskedLinear
from .partial_batch_norm import PartialBatchNorm1d, PartialBatchNorm2d
from .partial_layer_norm import PartialLayerNorm, PartialRMSNorm
from .partial_per_channel import PartialPerChannel

__all__ = [
    "Dropout",
    "MaskedConv2d",
    "MaskedConv3d",
    "MaskedEmbedding",
    "MaskedGroupedConv2d",
    "MaskedLinear",
    "PartialBatchNorm1d",
    "PartialBatchNorm2d",
    "PartialLayerNorm",
    "PartialPerChannel",
    "PartialRMSNorm",
    "retire",
]
