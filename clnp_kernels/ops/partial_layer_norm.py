"""`partial_layer_norm`: layer normalisation whose statistics are block-causal.

Letters: C channels, Ca active (frozen), Cf free, C = Ca + Cf; M rows, all other dimensions. Block a
has the channels of task a, n_a is where it ends, and the last block is the free one.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .. import _register
from .._checks import check_alike, check_list, check_number, check_shape, check_tensor
from .._register import call
from ..errors import message
from ..reference import partial_layer_norm as reference
from ..reference.channel_activity import accumulator
from ._masked import NAMES


def partial_layer_norm(
    x: Tensor,  # [..., C]
    boundaries: Sequence[int],
    active_weight: Tensor | None = None,  # [Ca]
    free_weight: Tensor | None = None,  # [Cf]
    active_bias: Tensor | None = None,  # [Ca]
    free_bias: Tensor | None = None,  # [Cf]
    *,
    eps: float = 1e-5,
    rms: bool = False,
    skip_active: bool = False,
    activity: bool = False,
    full_input_grad: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Layer or RMS normalisation of which block a sees the channels of the blocks up to a only.

    ::

        y_a = (x_a - mean(x[..., :n_a])) / sqrt(var(x[..., :n_a]) + eps) * weight_a + bias_a
        y_a = x_a / sqrt(mean(x[..., :n_a] ** 2) + eps) * weight_a + bias_a           # rms

    With one block that is `torch.nn.functional.layer_norm` (`rms_norm`). With more, nothing that a
    later block holds reaches an earlier one: `y[..., :n_a]` is what a network of n_a channels
    computes. The sums of a block begin anew at its first channel, so with the same implementation
    it has the same bits there (PyTorch's operators on a GPU may round differently).

    The gradient with respect to `x` is *defined* as zero for the active channels, which depend on
    frozen weights only; `full_input_grad=True` computes the true gradient. Frozen tensors get no
    gradient. There are no second gradients.

    Statistics are float32 (float64 for float64), under `torch.autocast` too, where `x` keeps its
    dtype.

    Arguments:
        x: [..., C], float32, bfloat16, float16 or float64; all channels in any case, as the
            statistics of the free block are those of all.
        boundaries: [n_1, ..., n_k], the ends of the blocks in order, n_k = C. Blocks may be empty.
            The last one is free, the others are active: Ca = n_(k-1), or 0.
        active_weight, free_weight: [Ca] and [Cf], scale; both or none. All vectors have one dtype,
            that of `x` or float32. Where Ca is 0, None will do for the active one.
        active_bias, free_bias: [Ca] and [Cf], shift; likewise.
        eps: added to the variance, at least 0.
        rms: RMS normalisation.
        skip_active: compute the free channels only.
        activity: also return the activity.
        full_input_grad: compute the gradient of the active channels too.

    Returns:
        y [..., C], or [..., Cf] with `skip_active`; with `activity` also [C] (or [Cf]), float32
        (float64 for float64): the sum over all leading dimensions of `|y|`, without gradient.

    Raises:
        TypeError: an argument is no dense floating-point tensor, the dtypes differ, or a boundary
            is no whole number.
        ValueError: shapes, boundaries or devices do not fit, one of a pair is missing, or eps is
            out of range.
    """
    check_tensor("x", x)
    vectors = (active_weight, free_weight, active_bias, free_bias)
    options = (eps, rms, skip_active, activity)
    _check(x, boundaries, vectors, eps)
    rows = x if x.ndim == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])
    if full_input_grad:
        y, sums = _with_full_input_grad(rows, [*boundaries], *vectors, *options)
    else:
        y, sums, _, _ = call("partial_layer_norm_fwd", rows, [*boundaries], *vectors, *options)
    y = y if x.ndim == 2 else y.view(*x.shape[:-1], y.shape[1])
    return (y, sums) if activity else y


def partial_layer_norm_fwd(
    x: Tensor,  # [M, C]
    boundaries: Sequence[int],
    active_weight: Tensor | None,  # [Ca]
    free_weight: Tensor | None,  # [Cf]
    active_bias: Tensor | None,  # [Ca]
    free_bias: Tensor | None,  # [Cf]
    eps: float,
    rms: bool,
    skip_active: bool,
    activity: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator of `partial_layer_norm` on rows.

    Returns:
        y [M, C] or [M, Cf], activity (or empty), and of the last block the mean [M] (empty if
        `rms`) and 1 / sqrt(variance + eps) [M], float32 or float64.

    Raises:
        TypeError, ValueError: as `partial_layer_norm`.
    """
    check_tensor("x", x, 2)
    vectors = (active_weight, free_weight, active_bias, free_bias)
    options = (eps, rms, skip_active, activity)
    _check(x, boundaries, vectors, eps)
    result = call("partial_layer_norm_fwd", x, [*boundaries], *vectors, *options)
    return cast(tuple[Tensor, Tensor, Tensor, Tensor], result)


def partial_layer_norm_bwd(
    grad_y: Tensor,  # [M, Cf]
    x: Tensor,  # [M, C]
    mean: Tensor,  # [M]
    rstd: Tensor,  # [M]
    free_weight: Tensor | None,  # [Cf]
    rms: bool,
    affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, the free weight and the free bias.

    Arguments:
        grad_y: [M, Cf], gradient of the free outputs.
        x: [M, C], the input.
        mean, rstd: [M], as the forward operator returns them; the mean is empty if `rms`.
        free_weight: [Cf] or None.
        rms: RMS normalisation.
        affine: compute the gradients of weight and bias.

    Returns:
        [M, C], zero for active channels; [Cf] and [Cf], float32 or float64 (empty unless `affine`).

    Raises:
        TypeError, ValueError: dtypes, devices or shapes do not fit.
    """
    check_tensor("x", x, 2)
    check_tensor("grad_y", grad_y, 2)
    check_alike("grad_y", grad_y, "x", x)
    if grad_y.shape[0] != x.shape[0] or grad_y.shape[1] > x.shape[1]:
        wanted = f"[M, Cf] with M = {x.shape[0]}, Cf at most {x.shape[1]}"
        raise ValueError(message("grad_y.shape", list(grad_y.shape), wanted))
    wide = (accumulator(x.dtype),)
    _check_vector("mean", mean, 0 if rms else x.shape[0], "[M], or [0] for rms", x, wide)
    _check_vector("rstd", rstd, x.shape[0], "[M]", x, wide)
    if free_weight is not None:
        _check_vector("free_weight", free_weight, grad_y.shape[1], "[Cf]", x, _dtypes(x))
    arguments = (grad_y, x, mean, rstd, free_weight, rms, affine)
    return cast(tuple[Tensor, Tensor, Tensor], call("partial_layer_norm_bwd", *arguments))


def _dtypes(x: Tensor) -> tuple[torch.dtype, ...]:
    """The dtypes that vectors may have."""
    return (x.dtype,) if x.dtype == torch.float64 else (x.dtype, torch.float32)


def _check(
    x: Tensor, boundaries: Sequence[int], vectors: Sequence[Tensor | None], eps: float
) -> None:
    """Raise unless the arguments of the operator fit."""
    check_number("eps", eps)
    _check_boundaries(boundaries)
    if x.ndim == 0 or x.shape[-1] != boundaries[-1]:
        wanted = f"[..., C] with C = {boundaries[-1]}, the end of boundaries"
        raise ValueError(message("x.shape", list(x.shape), wanted))
    split = reference.free_start(boundaries)
    sizes, dtypes = {"active": split, "free": boundaries[-1] - split}, _dtypes(x)
    for name, vector in zip(NAMES, vectors, strict=True):
        if vector is not None:
            part = name.split("_")[0]
            _check_vector(
                name, vector, sizes[part], "[Ca]" if part == "active" else "[Cf]", x, dtypes
            )
            dtypes = (vector.dtype,)
    for kind, (active, free) in (("weight", vectors[:2]), ("bias", vectors[2:])):
        if free is None and active is not None:
            raise ValueError(message(f"free_{kind}", None, f"a tensor, as active_{kind} is one"))
        if active is None and free is not None and split:
            raise ValueError(message(f"active_{kind}", None, f"a tensor, as free_{kind} is one"))


def _check_boundaries(boundaries: Sequence[int]) -> None:
    """Raise unless `boundaries` are the ends of blocks, in order."""
    check_list("boundaries", boundaries)
    if not boundaries:
        raise ValueError(message("boundaries", [], "the ends of the blocks, at least one"))
    for i, end in enumerate(boundaries):
        name = f"boundaries[{i}]"
        if isinstance(end, float):
            raise TypeError(message(name, end, "a whole number"))
        check_number(name, end, boundaries[i - 1] if i else 0)


def _check_vector(
    name: str, vector: Tensor, size: int, letters: str, x: Tensor, dtypes: Sequence[torch.dtype]
) -> None:
    """Raise unless `vector` has this size, one of the dtypes and the device of `x`."""
    check_tensor(name, vector, 1)
    check_shape(name, vector, (size,), letters)
    if vector.dtype not in dtypes:
        wanted = f"{dtypes[-1]} like the others or x"
        raise TypeError(message(f"{name}.dtype", vector.dtype, wanted, "convert with .to()"))
    if vector.device != x.device:
        raise ValueError(message(f"{name}.device", vector.device, f"{x.device} like x"))


def _with_full_input_grad(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Call the reference in plain PyTorch, of which autograd derives the gradient of all inputs.

    Frozen vectors and the activity have no gradient.
    """
    boundaries, active_weight, free_weight, active_bias, *rest = arguments
    frozen = [
        None if vector is None else vector.detach() for vector in (active_weight, active_bias)
    ]
    vectors = (frozen[0], free_weight, frozen[1])
    y, sums, _, _ = reference.partial_layer_norm_fwd(x, boundaries, *vectors, *rest)
    return y, sums.detach()


def _fake_fwd(
    x: Tensor, boundaries: Sequence[int], *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, rms, skip_active, activity = rest[-4:]
    rows, channels = x.shape
    channels -= reference.free_start(boundaries) if skip_active else 0
    sizes = (channels if activity else 0, 0 if rms else rows, rows)
    sums, mean, rstd = (x.new_empty(size, dtype=accumulator(x.dtype)) for size in sizes)
    return x.new_empty(rows, channels), sums, mean, rstd


def _setup_fwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, boundaries, _, free_weight, _, free_bias, _, ctx.rms, _, _ = inputs
    _, sums, mean, rstd = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(sums, mean, rstd)
    ctx.free = x.shape[1] - reference.free_start(boundaries)
    ctx.dtypes = [None if t is None else t.dtype for t in (free_weight, free_bias)]
    ctx.save_for_backward(x, mean, rstd, free_weight)


def _backward_fwd(ctx: Any, grad_y: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of x, free_weight and free_bias."""
    needs = (ctx.needs_input_grad[3], ctx.needs_input_grad[5])
    if grad_y is None or not (ctx.needs_input_grad[0] or any(needs)):
        return (None,) * 10
    free = grad_y[:, grad_y.shape[1] - ctx.free :]
    grad_x, *grads = call("partial_layer_norm_bwd", free, *ctx.saved_tensors, ctx.rms, any(needs))
    triples = zip(needs, grads, ctx.dtypes, strict=True)
    weight, bias = (grad.to(dtype) if need else None for need, grad, dtype in triples)
    return grad_x, None, None, weight, None, bias, *(None,) * 4


def _fake_bwd(
    grad_y: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    free, dtype = grad_y.shape[1] if rest[-1] else 0, accumulator(x.dtype)
    return x.new_empty(x.shape), x.new_empty(free, dtype=dtype), x.new_empty(free, dtype=dtype)


def _no_second_gradient(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
    raise NotImplementedError("partial_layer_norm has no second gradient")


_register.define(
    "partial_layer_norm_fwd",
    "(Tensor x, int[] boundaries, Tensor? active_weight, Tensor? free_weight, "
    "Tensor? active_bias, Tensor? free_bias, float eps, bool rms, bool skip_active, "
    "bool activity) -> (Tensor, Tensor, Tensor, Tensor)",
    reference.partial_layer_norm_fwd,
    _fake_fwd,
)
_register.define(
    "partial_layer_norm_bwd",
    "(Tensor grad_y, Tensor x, Tensor mean, Tensor rstd, Tensor? free_weight, bool rms, "
    "bool affine) -> (Tensor, Tensor, Tensor)",
    reference.partial_layer_norm_bwd,
    _fake_bwd,
)
_register.differentiate("partial_layer_norm_fwd", _backward_fwd, _setup_fwd)
_register.differentiate(
    "partial_layer_norm_bwd", _no_second_gradient, lambda ctx, inputs, output: None
)
for _name in ("fwd", "bwd"):
    _register.vmap_by_loop(f"partial_layer_norm_{_name}")
