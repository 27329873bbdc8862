"""Random arguments of the operators: any sizes, strides and dtypes, and what spoils them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = st.sampled_from((0, 1, 2, 3, 5, 8, 17, 33))
FEW = st.integers(0, 5)


@dataclass
class Call:
    """A call of a public operator.

    Attributes:
        op: its name.
        args: in order.
        valid: whether the arguments are in order; otherwise it has to be refused.
    """

    op: str
    args: dict[str, Any]
    valid: bool = True


@st.composite
def tensor(
    draw: st.DrawFn, *shape: int, dtype: torch.dtype, low: float | None = None, plain: bool = False
) -> Tensor:
    """Random numbers, normal or from `low` to `low` + 1, with any strides.

    `plain` tensors, which an operator writes to, have no element twice.
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    if low is not None:
        numbers = torch.rand(shape, generator=generator, dtype=torch.float64) + low
    if draw(st.integers(0, 9)) == 0:
        numbers = torch.zeros_like(numbers) if low is None else numbers
    layouts = ["dense", "permuted", "stepped", "offset"] + ([] if plain else ["expanded"])
    if len(shape) == 4:
        layouts.append("channels_last")
    return laid(numbers.to(dtype), draw(st.sampled_from(layouts)), draw(st.integers(0, 3)))


def laid(x: Tensor, how: str, dim: int) -> Tensor:
    """The same numbers with other strides."""
    if x.dim() == 0:
        return x
    dim %= x.dim()
    if how == "permuted":
        order = [*range(dim, x.dim()), *range(dim)]
        back = [order.index(d) for d in range(x.dim())]
        return x.permute(order).contiguous().permute(back)
    if how == "stepped":
        return x.repeat_interleave(2, dim)[(slice(None),) * dim + (slice(None, None, 2),)]
    if how == "offset":
        return torch.cat([x, x, x], dim).narrow(dim, x.shape[dim], x.shape[dim])
    if how == "expanded" and x.shape[dim] > 0:
        return x.narrow(dim, 0, 1).expand(x.shape)
    if how == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x


@st.composite
def linear(draw: st.DrawFn, op: str) -> Call:
    """masked_linear and its parts."""
    whole, op = op, op if op != "masked_linear" else "masked_linear_fwd"
    rows, active_in, free_in, active_out, free_out = (draw(SIZES) for _ in range(5))
    dtype, inputs = draw(st.sampled_from(DTYPES)), active_in + free_in
    flags = {name: draw(st.booleans()) for name in ("bias", "activity", "full_input_grad")}
    full, bias = flags["full_input_grad"], flags["bias"]

    def new(*shape: int) -> Tensor:
        return draw(tensor(*shape, dtype=dtype))

    weights = {"active_weight": new(active_out, active_in), "free_weight": new(free_out, inputs)}
    if op == "masked_linear_fwd":
        pair = (new(active_out), new(free_out)) if bias else (None, None)
        args = {"x": new(rows, inputs), **weights, "active_bias": pair[0], "free_bias": pair[1]}
        args |= {"activation": draw(st.sampled_from(("none", "relu")))}
        args |= {"activity": flags["activity"]}
        return Call(whole, args | ({"full_input_grad": full} if whole != op else {}))
    if op == "masked_linear_relu_grad":
        outputs = active_out + free_out
        pair = {"grad_y": new(rows, outputs), "y": new(rows, outputs)}
        return Call(op, {**pair, "active": active_out, "bias": bias})
    if op == "masked_linear_dgrad":
        args = {"grad_z": new(rows, free_out), "free_weight": weights["free_weight"]}
        return Call(op, {**args, "active": active_in})
    return Call(op, {"grad_z": new(rows, free_out), "x": new(rows, inputs), "bias": bias})


@st.composite
def conv(draw: st.DrawFn, op: str) -> Call:
    """masked_conv2d and its parts."""
    whole, op = op, op if op != "masked_conv2d" else "masked_conv2d_fwd"
    batch, height, width = draw(st.integers(0, 3)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    depthwise = draw(st.booleans())
    active_in, free_in, active_out, free_out = (draw(FEW) for _ in range(4))
    if depthwise:
        active_out, free_out = active_in, free_in
    dtype, inputs = draw(st.sampled_from(DTYPES)), active_in + free_in
    kernel = [draw(st.integers(1, 3)) for _ in "HW"]
    stride, dilation = ([draw(st.integers(1, 3)) for _ in "HW"] for _ in range(2))
    padding = [draw(st.integers(0, 3)) for _ in "HW"]
    sides = list(zip((height, width), kernel, stride, padding, dilation, strict=True))
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides]
    valid = all(n + 2 * p > d * (k - 1) for n, k, s, p, d in sides)
    size = [max(n, 0) for n in size]
    flags = [draw(st.booleans()) for _ in range(3)]
    bias, activity, full = flags
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}

    def new(*shape: int) -> Tensor:
        return draw(tensor(*shape, dtype=dtype))

    x = new(batch, inputs, height, width)
    weights = {
        "active_weight": new(active_out, 1 if depthwise else active_in, *kernel),
        "free_weight": new(free_out, 1 if depthwise else inputs, *kernel),
    }
    if op == "masked_conv2d_fwd":
        pair = (new(active_out), new(free_out)) if bias else (None, None)
        args = {"x": x, **weights, "active_bias": pair[0], "free_bias": pair[1], **geometry}
        args |= {"depthwise": depthwise, "activation": draw(st.sampled_from(("none", "relu")))}
        args |= {"activity": activity} | ({"full_input_grad": full} if whole != op else {})
        return Call(whole, args, valid)
    if op == "masked_conv2d_relu_grad":
        shape = (batch, active_out + free_out, height, width)
        return Call(
            op, {"grad_y": new(*shape), "y": new(*shape), "active": active_out, "bias": bias}
        )
    if op == "masked_conv2d_dgrad":
        args = {"grad_z": new(batch, free_out, *size), "x": x, "active": active_in, **geometry}
        args |= {"free_weight": weights["free_weight"], "depthwise": depthwise}
        return Call(op, args, valid)
    args = {"grad_z": new(batch, free_out, *size), "x": x, "kernel": kernel, **geometry}
    return Call(op, {**args, "depthwise": depthwise, "bias": bias}, valid)


@st.composite
def norm(draw: st.DrawFn, op: str) -> Call:
    """partial_batch_norm and its gradient."""
    batch, active, free = draw(st.integers(0, 3)), draw(FEW), draw(FEW)
    size = draw(st.integers(0, 6)), draw(st.integers(1, 6))
    dtype = draw(st.sampled_from(DTYPES))
    wide = draw(st.sampled_from((dtype, torch.float32))) if dtype != torch.float64 else dtype
    training, affine, shift = (draw(st.booleans()) for _ in range(3))
    shape = (batch, active + free, *size)
    # No values have no mean.
    training = training and batch * size[0] * size[1] > 0

    def vector(n: int, low: float) -> Tensor:
        return draw(tensor(n, dtype=wide, low=low, plain=True))

    weights = [vector(n, -0.5) if affine else None for n in (active, free)]
    valid = not (training and free and batch * size[0] * size[1] == 1)
    x, eps = draw(tensor(*shape, dtype=dtype)), draw(st.sampled_from((1e-5, 1e-3, 0.5)))
    if op == "partial_batch_norm_bwd":
        y = draw(tensor(*shape, dtype=dtype)) if draw(st.booleans()) else None
        args = {"grad_y": draw(tensor(*shape, dtype=dtype)), "x": x, "y": y}
        args |= {"free_mean": vector(free, -0.5), "free_var": vector(free, 0.5)}
        return Call(op, {**args, "free_weight": weights[1], "training": training, "eps": eps})
    args = {"x": x, "active_mean": vector(active, -0.5), "active_var": vector(active, 0.5)}
    args |= {"free_mean": vector(free, -0.5), "free_var": vector(free, 0.5)}
    args |= {"active_weight": weights[0], "free_weight": weights[1]}
    args |= {
        f"{part}_bias": vector(n, -0.5) if shift else None
        for part, n in (("active", active), ("free", free))
    }
    args |= {
        "training": training,
        "eps": eps,
        "activation": draw(st.sampled_from(("none", "relu"))),
    }
    args |= {"activity": draw(st.booleans())}
    if op == "partial_batch_norm":
        args |= {"full_input_grad": draw(st.booleans())}
        args |= {"momentum": draw(st.sampled_from((0.0, 0.1, 1.0)))}
    return Call(op, args, valid)


@st.composite
def layer_norm(draw: st.DrawFn, op: str) -> Call:
    """partial_layer_norm and its gradient."""
    sizes = draw(st.lists(SIZES, min_size=1, max_size=4))
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    rows, free, channels = draw(SIZES), sizes[-1], ends[-1]
    dtype = draw(st.sampled_from(DTYPES))
    wide = draw(st.sampled_from((dtype, torch.float32))) if dtype != torch.float64 else dtype
    rms, affine, shift = (draw(st.booleans()) for _ in range(3))

    def vector(n: int, low: float, kind: torch.dtype = wide) -> Tensor:
        return draw(tensor(n, dtype=kind, low=low))

    x = draw(tensor(rows, channels, dtype=dtype))
    if op == "partial_layer_norm_bwd":
        saved = torch.float64 if dtype == torch.float64 else torch.float32
        args = {"grad_y": draw(tensor(rows, free, dtype=dtype)), "x": x}
        args |= {"mean": vector(0 if rms else rows, -0.5, saved)}
        args |= {"rstd": vector(rows, 0.5, saved)}
        args |= {"free_weight": vector(free, -0.5) if affine else None}
        return Call(op, {**args, "rms": rms, "affine": draw(st.booleans())})
    args = {"x": x, "boundaries": ends}
    for kind, has in (("weight", affine), ("bias", shift)):
        for part, n in (("active", channels - free), ("free", free)):
            args[f"{part}_{kind}"] = vector(n, -0.5) if has else None
    args |= {"eps": draw(st.sampled_from((1e-5, 1e-3, 0.5))), "rms": rms}
    args |= {"skip_active": draw(st.booleans()), "activity": draw(st.booleans())}
    if op == "partial_layer_norm":
        args |= {"full_input_grad": draw(st.booleans())}
    return Call(op, args)


@st.composite
def activity(draw: st.DrawFn, op: str) -> Call:
    """channel_activity."""
    shape = draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
    x = draw(tensor(*shape, dtype=draw(st.sampled_from(DTYPES))))
    return Call(op, {"x": x, "dim": draw(st.integers(-len(shape), len(shape) - 1))})


@st.composite
def dropout(draw: st.DrawFn, op: str) -> Call:
    """dropout."""
    shape = draw(st.lists(st.integers(0, 9), max_size=4))
    x = draw(tensor(*shape, dtype=draw(st.sampled_from(DTYPES))))
    return Call(op, {"x": x, "p": draw(st.sampled_from((0.0, 0.3, 0.99)))})


@st.composite
def optimizer(draw: st.DrawFn, op: str) -> Call:
    """adam_l1 and sgd_l1."""
    dtype, count = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 3))
    shapes = [draw(st.lists(st.integers(0, 6), max_size=4)) for _ in range(count)]

    def new(low: float | None = None, plain: bool = True) -> list[Tensor]:
        return [draw(tensor(*shape, dtype=dtype, low=low, plain=plain)) for shape in shapes]

    rate = draw(st.sampled_from((0.0, 1e-3, 0.5)))
    lr = torch.tensor(rate) if draw(st.booleans()) else rate
    args: dict[str, Any] = {"params": new(), "grads": new(plain=False)}
    if op == "adam_l1":
        args |= {"exp_avgs": new(), "exp_avg_sqs": new(0.1)}
        args |= {"steps": [torch.tensor(float(draw(st.integers(0, 9)))) for _ in shapes]}
    else:
        args |= {"momentum_buffers": new()}
    args |= {"lr": lr, "l1": [draw(st.sampled_from((0.0, 0.1))) for _ in shapes]}
    if op == "adam_l1":
        args |= {"beta1": draw(st.sampled_from((0.0, 0.9))), "beta2": 0.99, "eps": 1e-3}
    else:
        args |= {"momentum": draw(st.sampled_from((0.0, 0.9)))}
        args |= {"dampening": draw(st.sampled_from((0.0, 0.3))), "nesterov": draw(st.booleans())}
    args |= {"weight_decay": draw(st.sampled_from((0.0, 0.1))), "maximize": draw(st.booleans())}
    args |= {"grad_scale": draw(st.sampled_from((None, torch.tensor(2.0))))}
    args |= {"found_inf": draw(st.sampled_from((None, torch.zeros(()), torch.ones(1))))}
    if op == "sgd_l1":
        args |= {"first": draw(st.sampled_from((None, [True] * count, [False] * count)))}
    return Call(op, args)


MAKERS: dict[str, Callable[..., Any]] = {
    **{f"masked_linear{part}": linear for part in ("", "_fwd", "_relu_grad", "_dgrad", "_wgrad")},
    **{f"masked_conv2d{part}": conv for part in ("", "_fwd", "_relu_grad", "_dgrad", "_wgrad")},
    **{f"partial_batch_norm{part}": norm for part in ("", "_fwd", "_bwd")},
    **{f"partial_layer_norm{part}": layer_norm for part in ("", "_fwd", "_bwd")},
    "channel_activity": activity,
    "dropout": dropout,
    "adam_l1": optimizer,
    "sgd_l1": optimizer,
}

NUMBERS = (-1, 0, 2**40, 2**70, float("nan"), float("inf"), 1.5, "3", None, (1, 2, 3), [1], True)


@st.composite
def spoiled(draw: st.DrawFn, op: str) -> Call:
    """A call with one argument that may be out of order."""
    call = draw(MAKERS[op](op))
    name = draw(st.sampled_from(sorted(call.args)))
    call.args[name] = draw(other(call.args[name]))
    return call


@st.composite
def other(draw: st.DrawFn, value: Any) -> Any:
    """Something in the place of an argument."""
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        changed = list(value)
        kind = draw(st.sampled_from(("shorter", "longer", "entry", "no list")))
        if kind == "no list":
            return draw(st.sampled_from((None, 3)))
        if kind == "entry":
            changed[0] = draw(other(changed[0]))
        return {"shorter": changed[1:], "longer": [*changed, changed[0]]}.get(kind, changed)
    if not isinstance(value, Tensor):
        return draw(st.sampled_from((*NUMBERS, "gelu", torch.ones(1, 1, 1, 1))))
    ways: list[Callable[[], Any]] = [
        *(lambda d=d: value.to(d) for d in (*DTYPES, torch.int64, torch.bool, torch.complex64)),
        *(lambda: value.unsqueeze(0), lambda: value.flatten(), lambda: value.to("meta")),
        *(lambda: value.to_sparse(), lambda: value.tolist(), lambda: value.numpy(force=True)),
        *(lambda: None, lambda: 1.0, lambda: "x"),
    ]
    for dim in range(value.dim()):
        ways += [lambda d=dim: torch.cat([value, value], d), lambda d=dim: value.narrow(d, 0, 0)]
    try:
        return draw(st.sampled_from(ways))()
    except TypeError:  # numpy has no bfloat16
        return None
