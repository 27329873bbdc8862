"""`adam_l1`: one step of Adam with a coupled L1 subgradient for many tensors, in place."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _register
from .._checks import check_number
from ..errors import message
from ..reference import adam_l1 as reference
from ._optimizers import check_length, check_step

SCHEMA = (
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] steps, Tensor[] lr, float[] l1, float beta1, float beta2, float eps, "
    "float weight_decay, bool maximize, Tensor? grad_scale, Tensor? found_inf) -> ()"
)
_register.define("adam_l1", SCHEMA, reference.adam_l1, lambda *args: None)


def adam_l1(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor | Sequence[float | Tensor],
    l1: Sequence[float],
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One step of Adam (Kingma & Ba 2015, Algorithm 1) with the L1 penalty of CLNP, in place.

    For each tensor w the gradient that enters Adam is `grad / grad_scale + weight_decay * w + l1 *
    sign(w)` with `sign(0) = 0`, the subgradient of `l1 * sum |w|` (CLNP, Golkar et al. 2019,
    Sec. 2.2). With `l1 = 0` this is `torch.optim.Adam` to rounding. Sums are in float32
    (float64 for float64).

    Arguments:
        params, grads, exp_avgs, exp_avg_sqs: lists of tensors, alike in shape, dtype and device.
        steps: tensors without dimensions, float32, counting the steps made; raised by 1 by this
            call. On the device of the parameters or on the CPU, for which a GPU has to wait.
        lr: learning rate, a number or a tensor of one element; or a list, one for each tensor.
        l1: one alpha for each tensor.
        beta1, beta2, eps, weight_decay, maximize: as `torch.optim.Adam`.
        grad_scale: gradients are divided by it (one element), as `torch.amp.GradScaler` wants.
        found_inf: if not zero (one element), nothing is changed.

    Raises:
        TypeError: an entry is no dense floating-point tensor (sparse gradients too), or dtypes
        differ.
        ValueError: lengths, shapes or devices differ, or a number is out of its range.
    """
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    scalars = {"grad_scale": grad_scale, "found_inf": found_inf}
    rates = check_step(lists, l1, weight_decay, lr, scalars)
    _check_steps(steps, len(params))
    check_number("beta1", beta1, below=1.0)
    check_number("beta2", beta2, below=1.0)
    check_number("eps", eps)
    if not params:
        return
    tensors = map(list, (params, grads, exp_avgs, exp_avg_sqs, steps))
    numbers = (list(l1), beta1, beta2, eps, weight_decay, maximize)
    torch.ops.clnp_kernels.adam_l1(*tensors, rates, *numbers, grad_scale, found_inf)


def _check_steps(steps: Sequence[Tensor], count: int) -> None:
    """Raise unless `steps` are `count` float32 tensors without dimensions."""
    check_length("steps", steps, count)
    for i, step in enumerate(steps):
        if not isinstance(step, Tensor) or step.dtype != torch.float32 or step.ndim != 0:
            wanted = "a float32 tensor without dimensions"
            raise TypeError(message(f"steps[{i}]", repr(step), wanted))
