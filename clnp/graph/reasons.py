"""Reasons why some operations can't be converted."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from .channels import MIXES
from .operations import documented
from .trace import argument

HELP = (
    f"Supported are {', '.join(documented())}, and modules built of them (docs/models.md); "
    "clnp.graph.register teaches others"
)
ALONE = "it normalises each channel separately, in a way that is not supported; use BatchNorm2d"
LOGITS = "the network must return logits, since the loss applies the softmax; remove it"
REASONS = {
    "LocalResponseNorm": MIXES,
    "local_response_norm": MIXES,
    "MultiheadAttention": MIXES,
    "scaled_dot_product_attention": MIXES,
    "instance_norm": ALONE,
    "pixel_unshuffle": "it makes channels of pixels, which would have to be pruned together",
}
# Operations along one axis -> (position of `dim`, its default, reason if it is the channel axis).
ALONG_AXIS = {"softmax": (1, None, MIXES), "Softmax": (0, None, MIXES)}


def reason_for(
    node: fx.Node, kind: str, module: nn.Module | None, shape: tuple[int, ...] | None
) -> str | None:
    """Return the reason why an operation is not supported, if one is known.

    Arguments:
        node: its call.
        kind: name of the function, method or module class.
        module: the called module; None for functions and methods.
        shape: shape of its first input; None if that isn't a single tensor.
    """
    if kind in ("Softmax", "softmax") and all(user.op == "output" for user in node.users):
        return LOGITS
    if kind in ALONG_AXIS:
        position, default, reason = ALONG_AXIS[kind]
        dim = (
            module.dim
            if isinstance(module, nn.Softmax)
            else argument(node, position, "dim", default)
        )
        return _along(dim, shape, reason)
    if kind in ("GroupNorm", "group_norm"):
        groups = (
            module.num_groups
            if isinstance(module, nn.GroupNorm)
            else argument(node, 1, "num_groups", 1)
        )
        return ALONE if shape and groups == shape[1] else MIXES
    if kind in ("LayerNorm", "layer_norm"):
        axes = argument(node, 1, "normalized_shape", ())
        axes = module.normalized_shape if isinstance(module, nn.LayerNorm) else axes
        inside = shape is not None and len(shape) == 4 and len(axes) < 3
        return (
            "it normalises over pixels, which is not supported; use BatchNorm2d"
            if inside
            else MIXES
        )
    return REASONS.get(kind)


def _along(dim: Any, shape: tuple[int, ...] | None, reason: str) -> str:
    """Return `reason` if `dim` is the channel axis: axis 1 of images, else the last."""
    if shape is None or not isinstance(dim, int):
        return reason
    axis = 1 if len(shape) == 4 else len(shape) - 1
    return (
        reason if dim % len(shape) == axis else f"it works along axis {dim}, which is not supported"
    )
