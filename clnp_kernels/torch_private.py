"""Private names of PyTorch that this project uses, all in this file.

They are not documented and may change with any release. Tried with torch 2.11, 2.13, 2.14.1 and
2.15; for a new release run `tests/clnp_kernels/test_torch_private.py` first.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

# Dictionaries of hooks that an `nn.Module` and a tensor carry.
MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def pre_hooks(module: nn.Module) -> list[Any]:
    """Return the hooks that run before a module's forward."""
    return list(module._forward_pre_hooks.values())


def is_aten(function: object) -> bool:
    """Return whether a function is an operator of `torch.ops`, or one of its overloads."""
    return isinstance(function, torch._ops.OpOverload | torch._ops.OpOverloadPacket)


def below_autograd() -> AbstractContextManager[None]:
    """Context in which a call of an operator skips autograd's dispatch keys."""
    context: AbstractContextManager[None] = torch._C._AutoDispatchBelowAutograd()
    return context


def within_transform() -> bool:
    """Return whether a transform of `torch.func` (grad, vmap, ...) is running."""
    return torch._C._are_functorch_transforms_active()


def any_requires_grad(*args: Any) -> bool:
    """Return whether a tensor among the arguments, or in a list among them, requires grad."""
    return torch._C._any_requires_grad(*args)


def version(tensor: Tensor) -> int:
    """Return the number of changes in place of a tensor (not of an inference tensor)."""
    return tensor._version


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """relu(x @ weight.T + bias) in one launch on a GPU, where cuBLAS has it; without gradient."""
    return torch._addmm_activation(bias, x, weight.t())


def has_kernel(operator: str, key: str) -> bool:
    """Return whether `"namespace::operator"` has a kernel of its own for a dispatch key."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator, key)


# Operations on lists of tensors in few launches, as `torch.optim` uses them; a trailing
# underscore stands for "in place".
foreach_add, foreach_add_ = torch._foreach_add, torch._foreach_add_
foreach_addcmul_ = torch._foreach_addcmul_
foreach_copy_ = torch._foreach_copy_
foreach_div = torch._foreach_div
foreach_lerp_ = torch._foreach_lerp_
foreach_mul, foreach_mul_ = torch._foreach_mul, torch._foreach_mul_
foreach_norm = torch._foreach_norm
foreach_sign = torch._foreach_sign
foreach_sub, foreach_sub_ = torch._foreach_sub, torch._foreach_sub_


def fused_adam_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    **options: Any,
) -> None:
    """Make one step of `torch.optim.Adam(fused=True)` without AMSGrad and gradient scale.

    Arguments:
        params, grads, exp_avgs, exp_avg_sqs, steps: of one dtype and device; the steps are those
            after this one.
        options: lr, beta1, beta2, weight_decay, eps, maximize and found_inf.
    """
    torch._fused_adam_(
        params, grads, exp_avgs, exp_avg_sqs, [], steps, amsgrad=False, grad_scale=None, **options
    )
