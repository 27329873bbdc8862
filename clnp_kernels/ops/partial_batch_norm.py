"""`partial_batch_norm`: batch normalisation whose first channels are frozen.

Letters: B batch, C channels, Ca active (frozen), Cf free, C = Ca + Cf, H/W height and width.
"""

from typing import Any, cast

import torch
from torch import Tensor

from .. import _register
from .._checks import check_alike, check_choice, check_number, check_shape, check_tensor, once
from .._register import call
from ..errors import message
from ..reference import partial_batch_norm as reference
from ..reference.channel_activity import accumulator
from ._masked import ACTIVATIONS, empty


def partial_batch_norm(
    x: Tensor,  # [B, C, H, W]
    active_mean: Tensor,  # [Ca]
    active_var: Tensor,  # [Ca]
    free_mean: Tensor,  # [Cf]
    free_var: Tensor,  # [Cf]
    active_weight: Tensor | None = None,  # [Ca]
    free_weight: Tensor | None = None,  # [Cf]
    active_bias: Tensor | None = None,  # [Ca]
    free_bias: Tensor | None = None,  # [Cf]
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    activity: bool = False,
    full_input_grad: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Batch normalisation of images: frozen for the first Ca channels, as usual for the others.

    ::

        y = activation((x - mean) / sqrt(var + eps) * weight + bias)

    The active channels take the frozen running statistics and affine parameters always. The free
    ones take the statistics of the batch if `training`, and `free_mean` and `free_var` move
    towards them in place: `running = (1 - momentum) * running + momentum * batch`, the variance
    with n / (n - 1) as in `torch.nn.functional.batch_norm`; else they take the running ones. So
    an active channel depends on its own input only, and nothing that is trained reaches it (CLNP,
    Golkar et al. 2019, Sec. 2).

    The gradient with respect to `x` is *defined* as zero for the active channels, which depend on
    frozen weights only; `full_input_grad=True` computes the true gradient. Frozen tensors get no
    gradient. There are no second gradients.

    Arguments:
        x: [B, C, H, W], float32, bfloat16, float16 or float64.
        active_mean, active_var: [Ca], frozen statistics; these and all other vectors have one
            dtype, that of `x` or float32.
        free_mean, free_var: [Cf], running statistics, changed in place if `training`.
        active_weight, free_weight: [Ca] and [Cf], scale; both or none.
        active_bias, free_bias: [Ca] and [Cf], shift; both or none.
        training: free channels take the statistics of the batch.
        momentum: 0 to 1.
        eps: added to the variance, at least 0.
        activation: "none" or "relu".
        activity: also return the activity.
        full_input_grad: compute the gradient of the active channels too.

    Returns:
        y [B, C, H, W] in the memory format of `x`; with `activity` also [C], float32
        (float64 for float64): the sum over batch and pixels of `|y|`, without gradient.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes differ.
        ValueError: shapes or devices do not fit, one of a pair is missing, a number is out of
            range, the activation is unknown, or `training` with one value per free channel.
    """
    check_number("momentum", momentum)
    if momentum > 1:
        raise ValueError(message("momentum", momentum, "a number from 0 to 1"))
    vectors = (active_mean, active_var, free_mean, free_var)
    affine = (active_weight, free_weight, active_bias, free_bias)
    options = (training, eps, activation, activity)
    if full_input_grad:
        _check_fwd(x, *vectors, *affine, training, eps, activation)
        y, sums, mean, var = _with_full_input_grad(x, *vectors, *affine, *options)
    else:
        y, sums, mean, var = partial_batch_norm_fwd(x, *vectors, *affine, *options)
    if training and free_mean.numel() and x.numel():
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            free_mean.lerp_(mean.to(free_mean.dtype), momentum)
            free_var.lerp_((var * (count / (count - 1))).to(free_var.dtype), momentum)
    return (y, sums) if activity else y


def partial_batch_norm_fwd(
    x: Tensor,  # [B, C, H, W]
    active_mean: Tensor,  # [Ca]
    active_var: Tensor,  # [Ca]
    free_mean: Tensor,  # [Cf]
    free_var: Tensor,  # [Cf]
    active_weight: Tensor | None,  # [Ca]
    free_weight: Tensor | None,  # [Cf]
    active_bias: Tensor | None,  # [Ca]
    free_bias: Tensor | None,  # [Cf]
    training: bool,
    eps: float,
    activation: str,
    activity: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator of `partial_batch_norm`, which changes nothing in place.

    Returns:
        y [B, C, H, W], activity [C] (or empty), and mean and variance of the batch [Cf] (empty
        unless `training`), float32 or float64; the variance is divided by the number of values.

    Raises:
        TypeError, ValueError: as `partial_batch_norm`.
    """
    vectors = (active_mean, active_var, free_mean, free_var)
    affine = (active_weight, free_weight, active_bias, free_bias)
    _check_fwd(x, *vectors, *affine, training, eps, activation)
    options = (training, eps, activation, activity)
    result = call("partial_batch_norm_fwd", x, *vectors, *affine, *options)
    return cast(tuple[Tensor, Tensor, Tensor, Tensor], result)


def partial_batch_norm_bwd(
    grad_y: Tensor,
    x: Tensor,
    y: Tensor | None,
    free_mean: Tensor,
    free_var: Tensor,
    free_weight: Tensor | None,
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, the free weight and the free bias.

    Arguments:
        grad_y: [B, C, H, W], gradient of the output.
        x: [B, C, H, W], the input.
        y: [B, C, H, W], the output if it went through a ReLU, else None.
        free_mean, free_var: [Cf], of the batch if `training`.
        free_weight: [Cf] or None.
        training, eps: as in `partial_batch_norm`.

    Returns:
        [B, C, H, W] in the memory format of `x`, zero for active channels; [Cf] and [Cf], float32
        or float64.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes do not fit.
    """
    check_tensor("x", x, 4)
    images = {"grad_y": grad_y} if y is None else {"grad_y": grad_y, "y": y}
    for name, tensor in images.items():
        check_tensor(name, tensor, 4)
        check_alike(name, tensor, "x", x)
        check_shape(name, tensor, x.shape, "[B, C, H, W]")
    check_tensor("free_mean", free_mean, 1)
    active = free_mean.new_empty(max(x.shape[1] - len(free_mean), 0))
    weights = (None, None) if free_weight is None else (active, free_weight)
    _check_vectors(x, active, active, free_mean, free_var, *weights, None, None)
    arguments = (grad_y, x, y, free_mean, free_var, free_weight)
    result = call("partial_batch_norm_bwd", *arguments, training, eps)
    return cast(tuple[Tensor, Tensor, Tensor], result)


_NAMES = reference.Vectors._fields
_STATISTICS = _NAMES[:4]


@once
def _check_fwd(
    x: Tensor, active_mean: Tensor, active_var: Tensor, free_mean: Tensor, *rest: Any
) -> None:
    """Raise unless the arguments of the operator fit; `rest` are the others up to activation."""
    *vectors, training, eps, activation = rest
    check_choice("activation", activation, ACTIVATIONS)
    check_number("eps", eps)
    check_tensor("x", x, 4)
    _check_vectors(x, active_mean, active_var, free_mean, *vectors)
    values = x.shape[0] * x.shape[2] * x.shape[3]
    if training and free_mean.numel() and values == 1:
        wanted = "more than one value per free channel in training"
        way_out = "use a larger batch; drop_last=True of a DataLoader leaves a last one of one out"
        raise ValueError(message("x.shape", list(x.shape), wanted, way_out))


def _check_vectors(x: Tensor, *vectors: Tensor | None) -> None:
    """Raise unless the vectors fit together and to the channels of `x`."""
    first = vectors[0]
    for name, vector in zip(_NAMES, vectors, strict=True):
        if vector is not None or name in _STATISTICS:
            check_tensor(name, vector, 1)
    assert first is not None
    assert vectors[2] is not None
    sizes = {"active": first.shape[0], "free": vectors[2].shape[0]}
    for name, vector in zip(_NAMES, vectors, strict=True):
        if vector is None:
            continue
        part = name.split("_")[0]
        check_shape(name, vector, (sizes[part],), "[Ca]" if part == "active" else "[Cf]")
        wanted = (x.dtype,) if x.dtype == torch.float64 else (x.dtype, torch.float32)
        if vector.dtype not in wanted or vector.dtype != first.dtype:
            text = f"{first.dtype if first.dtype in wanted else wanted[-1]} like the others or x"
            raise TypeError(message(f"{name}.dtype", vector.dtype, text, "convert with .to()"))
        if vector.device != x.device:
            raise ValueError(message(f"{name}.device", vector.device, f"{x.device} like x"))
    for kind, (active, free) in (("weight", vectors[4:6]), ("bias", vectors[6:8])):
        if (active is None) != (free is None):
            missing = f"active_{kind}" if active is None else f"free_{kind}"
            raise ValueError(message(missing, None, f"a tensor, as the other {kind} is one"))
    if x.shape[1] != sum(sizes.values()):
        wanted_x = f"[B, C, H, W] with C = {sum(sizes.values())} of the statistics"
        raise ValueError(message("x.shape", list(x.shape), wanted_x))


def _fake_fwd(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    free_mean, training, activity = rest[2], rest[8], rest[11]
    free = free_mean.shape[0] if training else 0
    counts = (x.shape[1] if activity else 0, free, free)
    sums, mean, var = (x.new_empty(count, dtype=accumulator(x.dtype)) for count in counts)
    return empty(x, x.shape[1]), sums, mean, var


def _with_full_input_grad(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Call the reference in plain PyTorch, of which autograd derives the gradient of all inputs.

    Frozen tensors and all results but y have no gradient.
    """
    given = list(arguments)
    for i in (0, 1, 2, 3, 4, 6):  # all vectors but the free weight and bias
        given[i] = None if given[i] is None else given[i].detach()
    y, sums, mean, var = reference.partial_batch_norm_fwd(x, *given)
    return y, sums.detach(), mean.detach(), var.detach()


def _setup_fwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, _, free_mean, free_var, _, free_weight, _, free_bias, *options = inputs
    y, sums, batch_mean, batch_var = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(sums, batch_mean, batch_var)
    ctx.training, ctx.eps, activation, _ = options
    # The running statistics change in place after this, those of the batch do not.
    mean, var = (batch_mean, batch_var) if ctx.training else (free_mean, free_var)
    ctx.dtypes = [None if t is None else t.dtype for t in (free_weight, free_bias)]
    ctx.save_for_backward(x, y if activation == "relu" else None, mean, var, free_weight)


def _backward_fwd(ctx: Any, grad_y: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of x, free_weight and free_bias."""
    if grad_y is None:
        return (None,) * 13
    arguments = (grad_y, *ctx.saved_tensors, ctx.training, ctx.eps)
    grad_x, *grads = call("partial_batch_norm_bwd", *arguments)
    pairs = zip(grads, ctx.dtypes, strict=True)
    weight, bias = (None if dtype is None else grad.to(dtype) for grad, dtype in pairs)
    return grad_x, None, None, None, None, None, weight, None, bias, *(None,) * 4


def _fake_bwd(
    grad_y: Tensor, x: Tensor, y: Tensor | None, free_mean: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, free = accumulator(x.dtype), free_mean.shape[0]
    return empty(x, x.shape[1]), x.new_empty(free, dtype=dtype), x.new_empty(free, dtype=dtype)


def _no_second_gradient(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
    raise NotImplementedError("partial_batch_norm has no second gradient")


_register.define(
    "partial_batch_norm_fwd",
    "(Tensor x, Tensor active_mean, Tensor active_var, Tensor free_mean, Tensor free_var, "
    "Tensor? active_weight, Tensor? free_weight, Tensor? active_bias, Tensor? free_bias, "
    "bool training, float eps, str activation, bool activity) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    reference.partial_batch_norm_fwd,
    _fake_fwd,
)
_register.define(
    "partial_batch_norm_bwd",
    "(Tensor grad_y, Tensor x, Tensor? y, Tensor free_mean, Tensor free_var, "
    "Tensor? free_weight, bool training, float eps) -> (Tensor, Tensor, Tensor)",
    reference.partial_batch_norm_bwd,
    _fake_bwd,
)
_register.differentiate("partial_batch_norm_fwd", _backward_fwd, _setup_fwd)
_register.differentiate(
    "partial_batch_norm_bwd", _no_second_gradient, lambda ctx, inputs, output: None
)
for _name in ("fwd", "bwd"):
    _register.vmap_by_loop(f"partial_batch_norm_{_name}")
