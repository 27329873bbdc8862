"""`sgd_l1`: one step of SGD with a coupled L1 subgradient for many tensors, in place."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _register
from .._checks import check_number
from ..reference import sgd_l1 as reference
from ._optimizers import check_length, check_step

SCHEMA = (
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, bool[] first, "
    "Tensor[] lr, float[] l1, float momentum, float dampening, bool nesterov, float weight_decay, "
    "bool maximize, Tensor? grad_scale, Tensor? found_inf) -> ()"
)
_register.define("sgd_l1", SCHEMA, reference.sgd_l1, lambda *args: None)


def sgd_l1(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    *,
    lr: float | Tensor | Sequence[float | Tensor],
    l1: Sequence[float],
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    first: Sequence[bool] | None = None,
) -> None:
    """One step of SGD with the L1 penalty of CLNP (Golkar et al. 2019, Sec. 2.2), in place.

    The gradient of each tensor w is `grad / grad_scale + weight_decay * w + l1 * sign(w)` with
    `sign(0) = 0`; momentum, dampening and Nesterov as in `torch.optim.SGD`.

    Arguments:
        params, grads: lists of tensors, alike in shape, dtype and device.
        momentum_buffers: as `params`; an empty list if `momentum` is 0.
        lr: learning rate, a number or a tensor of one element; or a list, one for each tensor.
        l1: one alpha for each tensor.
        momentum, dampening, nesterov, weight_decay, maximize: as `torch.optim.SGD`.
        grad_scale: gradients are divided by it (one element).
        found_inf: if not zero (one element), nothing is changed.
        first: which buffers are new: they become the gradient, without dampening. None: none is.

    Raises:
        TypeError: an entry is no dense floating-point tensor (sparse gradients too), or dtypes
        differ.
        ValueError: lengths, shapes or devices differ, or a number is out of its range.
    """
    lists = {"params": params, "grads": grads}
    if momentum:
        lists["momentum_buffers"] = momentum_buffers
    scalars = {"grad_scale": grad_scale, "found_inf": found_inf}
    rates = check_step(lists, l1, weight_decay, lr, scalars)
    check_number("momentum", momentum)
    check_number("dampening", dampening, low=float("-inf"))
    flags = [False] * len(params) if first is None else first
    check_length("first", flags, len(params))
    if not params:
        return
    buffers = momentum_buffers if momentum else []
    tensors = map(list, (params, grads, buffers, flags))
    numbers = (list(l1), momentum, dampening, nesterov, weight_decay, maximize)
    torch.ops.clnp_kernels.sgd_l1(*tensors, rates, *numbers, grad_scale, found_inf)
