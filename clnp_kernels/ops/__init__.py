"""Operators on a frozen part and a free part. Importing this loads the compiled libraries."""

from .. import _register
from .adam_l1 import adam_l1
from .channel_activity import channel_activity
from .dropout import dropout
from .masked_conv2d import (
    masked_conv2d,
    masked_conv2d_dgrad,
    masked_conv2d_fwd,
    masked_conv2d_relu_grad,
    masked_conv2d_wgrad,
)
from .masked_linear import (
    masked_linear,
    masked_linear_dgrad,
    masked_linear_fwd,
    masked_linear_relu_grad,
    masked_linear_wgrad,
)
from .partial_batch_norm import partial_batch_norm, partial_batch_norm_bwd, partial_batch_norm_fwd
from .partial_layer_norm import partial_layer_norm, partial_layer_norm_bwd, partial_layer_norm_fwd
from .sgd_l1 import sgd_l1

__all__ = [
    "adam_l1",
    "channel_activity",
    "dropout",
    "masked_conv2d",
    "masked_conv2d_dgrad",
    "masked_conv2d_fwd",
    "masked_conv2d_relu_grad",
    "masked_conv2d_wgrad",
    "masked_linear",
    "masked_linear_dgrad",
    "masked_linear_fwd",
    "masked_linear_relu_grad",
    "masked_linear_wgrad",
    "partial_batch_norm",
    "partial_batch_norm_bwd",
    "partial_batch_norm_fwd",
    "partial_layer_norm",
    "partial_layer_norm_bwd",
    "partial_layer_norm_fwd",
    "sgd_l1",
]

_register.load_libraries()
