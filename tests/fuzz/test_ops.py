"""Operators with random arguments: the reference's result in float64, or a clear error.

CLNP_LONG_TESTS=1 takes 10,000 cases.
"""

from __future__ import annotations

import importlib
import os
import re
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor

from clnp_kernels import _register, ops
from tests.fuzz.arguments import MAKERS, Call, spoiled

LONG = bool(os.environ.get("CLNP_LONG_TESTS"))
CASES = 10_000 if LONG else 200
FUZZ = settings(
    max_examples=CASES // (2 * len(MAKERS)) + 1,
    deadline=None,
    derandomize=not LONG,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
OURS = re.compile(r"[\w\])]: expected .*, got ")


WHOLE = ("masked_linear", "masked_conv2d", "partial_batch_norm", "partial_layer_norm")


def reference(op: str) -> Any:
    stem = re.sub(r"_(fwd|bwd|relu_grad|dgrad|wgrad)$", "", op)
    name = f"{op}_fwd" if op in WHOLE else op
    function = getattr(importlib.import_module(f"clnp_kernels.reference.{stem}"), name)
    if name not in _register.OPS:
        return function
    schema = getattr(torch.ops.clnp_kernels, name).default._schema
    return lambda **args: function(*(args[a.name] for a in schema.arguments))


def test_all_operators_are_tried() -> None:
    assert set(MAKERS) == set(ops.__all__)


def in_dtype(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list):
        return [in_dtype(v, change) for v in value]
    return value


def result_of(call: Call, change: Any, ours: bool = False) -> list[Tensor]:
    """Results of a call, or the lists that it changes; the call gets `change` of its tensors."""
    args = {name: in_dtype(value, change) for name, value in call.args.items()}
    if call.op in ("adam_l1", "sgd_l1"):
        return stepped(call.op, args, ours)
    if call.op == "dropout":
        torch.manual_seed(0)
        if not ours:
            args["seed"] = torch.randint(1 << 62, (1,))
    if not ours:
        args.pop("momentum", None)
        args.pop("full_input_grad", None)
        if call.op == "channel_activity":
            args["dim"] %= args["x"].dim()
    result = (getattr(ops, call.op) if ours else reference(call.op))(**args)
    return [result] if isinstance(result, Tensor) else list(result)


def stepped(op: str, args: dict[str, Any], ours: bool) -> list[Tensor]:
    """Tensors that an optimizer changes, after its step."""
    changed = [args[n] for n in ("params", "exp_avgs", "exp_avg_sqs", "momentum_buffers")
               if n in args]  # fmt: skip
    if ours:
        getattr(ops, op)(**args)
    else:
        rate = torch.as_tensor(args["lr"], dtype=torch.float64)
        args["lr"] = [rate] * len(args["params"])
        if op == "sgd_l1":
            args["first"] = args["first"] or [False] * len(args["params"])
        reference(op)(**args)
    return [tensor for group in changed for tensor in group]


def wide(tensor: Tensor) -> Tensor:
    return tensor.double().clone() if tensor.is_floating_point() else tensor


def size(*values: Any) -> float:
    """The norms of all tensors among these values, together."""
    return sum(float(v.double().norm()) for v in values if isinstance(v, Tensor))


def magnitudes(call: Call, exact: list[Tensor]) -> list[float]:
    """Per result the size of the terms that it is summed of, which is what rounding is of."""
    args = call.args
    if call.op.startswith(("masked", "channel", "dropout")):
        return [size(t) for t in result_of(call, lambda t: wide(t).abs())]
    if call.op.endswith("_l1"):
        return [size(t, *args["params"], *args["grads"]) for t in exact]
    x, rows = wide(args["x"]), max(args["x"][:, :1].numel(), 1) ** 0.5
    if call.op == "partial_batch_norm_bwd":
        mean = wide(args["free_mean"])
        distances = (x[:, x.shape[1] - len(mean) :] - mean[:, None, None]).abs()
        most = 1 + float(distances.max()) if distances.numel() else 1.0
        return [size(t) + most**2 * rows * size(args["grad_y"]) for t in exact]
    if call.op.startswith("partial_layer_norm"):
        return [size(t) + layer_norm_terms(call) for t in exact]
    vectors = [wide(args[name]) for name in ("active_mean", "active_var", "free_mean", "free_var")]
    if args["training"]:
        vectors[2:] = exact[2:]
    mean, var = torch.cat(vectors[::2]), torch.cat(vectors[1::2])
    terms = (x.abs() + mean.abs()[:, None, None]) * (var + args["eps"]).rsqrt()[:, None, None]
    shift = size(args["active_bias"], args["free_bias"])
    return [size(t, x) + rows * (size(terms) + shift) for t in exact]


def layer_norm_terms(call: Call) -> float:
    """What a rounding of x, its mean or the gradient can become: 1 / deviation is at most 1 /
    sqrt(eps), and 1.5 where it is an argument.
    """
    args, x = call.args, wide(call.args["x"])
    rows = max(len(x), 1) ** 0.5
    if call.op == "partial_layer_norm_bwd":
        mean = 0 if args["rms"] else wide(args["mean"])[:, None]
        most = float((x - mean).abs().max()) if x.numel() else 0.0
        return 1.5 * (1 + 1.5 * most) ** 2 * rows * size(args["grad_y"])
    shift = size(args["active_bias"], args["free_bias"])
    return rows * (size(x) * args["eps"] ** -0.5 + shift)


def check_values(call: Call) -> None:
    ours, theirs = result_of(call, Tensor.clone, True), result_of(call, Tensor.clone)
    exact = result_of(call, wide)
    assert len(ours) == len(theirs) or call.op in WHOLE
    # Of the whole operators only what was asked for comes back.
    for our, their, true, terms in zip(ours, theirs, exact, magnitudes(call, exact), strict=False):
        assert our.shape == true.shape
        assert our.dtype == their.dtype
        assert not our.isnan().any()
        error, torchs = (float((t.double() - true.double()).norm()) for t in (our, their))
        # Sums are of numbers that may be half as wide.
        eps = max(torch.finfo(t.dtype).eps for t in (our, *first_tensor(call)))
        assert error <= 2 * torchs + 8 * eps * terms


def first_tensor(call: Call) -> list[Tensor]:
    values = call.args.values()
    lists = [value if isinstance(value, list) else [value] for value in values]
    return [t for inner in lists for t in inner if isinstance(t, Tensor)][:1]


@pytest.mark.parametrize("op", MAKERS)
def test_values(op: str) -> None:
    @given(MAKERS[op](op))
    @FUZZ
    def equal_or_refused(call: Call) -> None:
        if call.valid:
            check_values(call)
            return
        with pytest.raises(ValueError, match=OURS):
            getattr(ops, call.op)(**call.args)

    equal_or_refused()


@pytest.mark.parametrize("op", MAKERS)
def test_arguments_out_of_order(op: str) -> None:
    @given(spoiled(op))
    @FUZZ
    def taken_or_refused(call: Call) -> None:
        error = None
        try:
            getattr(ops, call.op)(**call.args)
        except (TypeError, ValueError, RuntimeError) as caught:
            error = caught
        if error is not None and not OURS.search(str(error)):
            # The dispatcher refuses other types, in words of its own that name the argument.
            assert any(re.search(rf"\b{name}\b", str(error)) for name in call.args), repr(error)

    taken_or_refused()
